"""From fully convolutional networks to DeepLab v3+: the code behind the notebooks.

Nothing heavy is imported here; take what you need from the modules, for example
``from deeplab_edu.models import build_model`` or ``from deeplab_edu.data import open_dataset``.
"""

__version__ = "0.1.0"
