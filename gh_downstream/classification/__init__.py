"""Domain-adaptive image classification: published methods, on labelled source and unlabelled target images.

==================  ==================================================================================
``methods``         DANN, CDAN, MCD, GVB, DWL, SSRT and source-only: one file each
``backbones``       the networks under them, each with a bottleneck
``data``            digits, image folders, list files, and the embedded digits that need no download
``config``          what a run is configured by
``engine``          train and evaluate from a configuration
``batches``         the batch of each step
``features``        what a frozen backbone makes of the images, kept in files
``evaluation``      accuracy, overall and by class
==================  ==================================================================================
"""

try:  # asked for here, so that every module below may import them plainly
    import PIL.Image  # noqa: F401
    import sklearn  # noqa: F401
    import torchvision  # noqa: F401
except ImportError as error:
    raise ImportError(f"classification needs {error.name}: pip install 'gh_downstream[classification]'") from error
