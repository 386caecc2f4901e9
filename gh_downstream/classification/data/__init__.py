"""Classification data and how the images become tensors.

==============  ====================================================================================
``embedded``    real digits that scikit-learn brings, and a shifted rendering of others: no download
``digits``      MNIST, USPS and SVHN, in the files that they are published in
``folders``     a folder for each class, and the authors' list files
``benchmarks``  classes and sizes of Office-31, Office-Home, VisDA-2017 and DomainNet
``transforms``  from an image to a tensor
``records``     :class:`ClassificationDataset`: images and their classes
``load``        :class:`DataConfig` and :func:`load_dataset`: one call for every format
==============  ====================================================================================
"""

from gh_downstream.classification.data.load import DataConfig, load_dataset
from gh_downstream.classification.data.records import ClassificationDataset
from gh_downstream.classification.data.transforms import Transform, build_transform

__all__ = ["ClassificationDataset", "DataConfig", "Transform", "build_transform", "load_dataset"]
