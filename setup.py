"""Allows editable installation only: names such as `train` and `slices` must not land in site-packages."""

from setuptools import setup
from setuptools.command.build_py import build_py


class EditableOnly(build_py):
    def run(self) -> None:
        if not self.editable_mode:
            raise SystemExit("error: this project runs from its checkout; install it with: pip install --editable .")
        super().run()


setup(cmdclass={"build_py": EditableOnly})
