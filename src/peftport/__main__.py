"""``python -m peftport`` is the ``peftport`` command."""

from peftport.cli.main import main

main()
