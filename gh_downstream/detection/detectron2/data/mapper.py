"""What a model is given of an image, read as the other engines read it."""

import copy

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data.transforms import AugInput
from detectron2.utils.file_io import PathManager

from gh_downstream.data.images import open_image
from gh_downstream.detection.detectron2.data.register import ImageDict


class ImageMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper``, with images read by :func:`~gh_downstream.data.images.open_image`."""

    def __call__(self, dataset_dict: ImageDict) -> ImageDict:
        """Return what the model is given of an image in Detectron2's standard format.

        Raises:
            FileNotFoundError: The image does not exist.
            ValueError: It cannot be read, or is not of the size that the dictionary says.
        """
        image = copy.deepcopy(dataset_dict)
        pixels = detection_utils.convert_PIL_to_numpy(
            open_image(PathManager.get_local_path(image["file_name"])), self.image_format
        )
        detection_utils.check_image_size(image, pixels)
        segments = image.pop("sem_seg_file_name", None)
        seen = AugInput(pixels, sem_seg=segments and detection_utils.read_image(segments, "L").squeeze(2))
        transforms = self.augmentations(seen)
        shape = seen.image.shape[:2]
        image["image"] = torch.from_numpy(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if seen.sem_seg is not None:
            image["sem_seg"] = torch.from_numpy(seen.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(image, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            image.pop("annotations", None)
        elif "annotations" in image:
            self._transform_annotations(image, transforms, shape)
        return image
