"""`python -m deeplab_edu segment`: photographs in, label maps, overlays and areas out."""

import argparse


def segment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Label photographs with a trained network."
    parser.add_argument("photos", nargs="+", metavar="PHOTO_OR_FOLDER")


def segment(arguments: argparse.Namespace) -> int:
    raise ValueError("segment is not built yet.")
