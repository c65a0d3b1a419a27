"""The way in: from NIfTI files of patients to archives of joint slices."""
