"""``python -m deepgen_ext.cli``."""

from deepgen_ext.cli import main

main()
