import sys

from deeplab_edu.cli import main

sys.exit(main())
