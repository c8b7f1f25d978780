"""Train a small network on class folders, or on tars with `.cls` labels, on any number of processes.

    torchrun --nproc-per-node=2 examples/train.py train/ --classes 3

Started again it goes on where the checkpoint was saved, also on more or fewer processes, or without torchrun.
"""

import argparse
import logging
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from curator_dali import transforms as T
from curator_dali.torch import TorchImageLoader

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="a folder of class folders, or tars")
parser.add_argument("--classes", type=int, required=True)
parser.add_argument("--size", type=int, default=224, help="side of the crops in pixels")
parser.add_argument("--batch-size", type=int, default=64, help="images a step of each process")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--max-steps", type=int, help="save and stop after as many")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
args = parser.parse_args()

if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # before the loader: it takes the current GPU
distributed = "RANK" in os.environ  # set by torchrun
if distributed:
    dist.init_process_group()
rank = int(os.environ.get("RANK", 0))
logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(message)s")

augment = [T.RandomResizedCrop(args.size), T.HorizontalFlip(), T.Normalize(T.IMAGENET_MEAN, T.IMAGENET_STD)]
options = {"shuffle": 0, "shard": "torch" if distributed else None, "drop_last": True}
train = TorchImageLoader(args.data, batch_size=args.batch_size, transforms=augment, **options)
torch.manual_seed(0)
layers: list[nn.Module] = []
for inputs, outputs in ((3, 32), (32, 64), (64, 128), (128, 256)):
    layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, args.classes))
net.to(train.loader.device)
model = nn.parallel.DistributedDataParallel(net) if distributed else net
optimizer = torch.optim.AdamW(net.parameters())
parts = {"net": net, "optimizer": optimizer, "loader": train}
if args.checkpoint.exists():
    for name, state in torch.load(args.checkpoint, map_location="cpu").items():
        parts[name].load_state_dict(state)


def save() -> None:  # noqa: D103
    if rank == 0:
        partial = args.checkpoint.with_suffix(".partial")
        torch.save({name: part.state_dict() for name, part in parts.items()}, partial)
        partial.replace(args.checkpoint)  # a kill leaves the old checkpoint or the new one, never half of one


done = 0
while train.epoch < args.epochs and done != args.max_steps:
    for images, targets in train:
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        if done % 100 == 0 or done == args.max_steps:
            waiting = train.stats.wait_seconds / train.stats.seconds
            logging.info("epoch %d, step %d: loss %.3f, %.1f%% waiting", train.epoch, done, loss, 100 * waiting)
            save()
            if done == args.max_steps:
                break
save()
train.close()
if distributed:
    dist.destroy_process_group()
