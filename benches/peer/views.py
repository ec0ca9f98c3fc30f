"""The two views of MOCA by torchvision and Pillow: what `cargo xtask bench views --peer` compares this project with.

    python views.py FOLDER --threads 1

Written from the project's specification, as a careful torchvision user would write it. FOLDER has `*.ppm`, decoded images,
and `size.txt`, the side of a view. A step makes both views of every image; "losses" are mean and deviation of all values.

A server: see `serving.py`.  Needs: pip install torch torchvision pillow
"""

import random

import PIL
import torch
import torchvision
from PIL import Image, ImageFilter, ImageOps
from serving import serve
from torchvision import transforms

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def blurred(image):
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def solarised(image):
    return ImageOps.solarize(image, threshold=128)


def sometimes(change, probability):
    return transforms.RandomApply([change], p=probability)


def view(size, blur, solarise):
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            sometimes(transforms.ColorJitter(0.4, 0.4, 0.2, 0.1), 0.8),
            transforms.RandomGrayscale(0.2),
            sometimes(blurred, blur),
            sometimes(solarised, solarise),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )


class Views:
    def __init__(self, folder, precision):
        size = int((folder / "size.txt").read_text())
        random.seed(0)
        self.images = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.ppm"))]
        self.views = [view(size, blur=1.0, solarise=0.0), view(size, blur=0.1, solarise=0.2)]
        self.version = f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
        self.made = []

    def trained_numbers(self):
        return 0

    def train(self):
        self.made = [[view(image) for view in self.views] for image in self.images]
        return {}

    def losses(self):
        moments = {}
        for index in range(len(self.views)):
            values = torch.stack([made[index] for made in self.made]).double()
            moments[f"mean_{index}"] = values.mean().item()
            moments[f"deviation_{index}"] = values.std().item()
        return moments


if __name__ == "__main__":
    serve(Views)
