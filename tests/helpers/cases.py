"""The only case in a folder of drawn files: found, read, cut."""

from dataclasses import replace

from slices.convert.cut import cut_case
from slices.convert.options import ConvertOptions
from slices.convert.recognition import find_cases
from slices.convert.releases import release_of_name
from slices.convert.volumes import read_case

BRATS_2018 = replace(release_of_name("2018"), grid=None)  # drawn volumes are small


def only_case(source, release=BRATS_2018):
    (case,) = find_cases(source, release).cases
    return case


def read_only_case(source, release=BRATS_2018):
    return read_case(only_case(source, release), release.schema)


def cut_only_case(source, choice="tumor", release=BRATS_2018, **options):
    return cut_case(only_case(source, release), choice, release.schema, ConvertOptions(**options))
