"""Which regions come next when an app has no instance in the edge's own: the nearest first."""

from collections.abc import Iterable, Mapping

_US_EAST = ("us-east-1", "us-east-2", "us-west-2", "us-west-1")
_US_WEST = ("us-west-2", "us-east-2", "us-east-1", "ca-central-1")
_EUROPE = ("eu-west-1", "eu-west-2", "eu-central-1", "eu-north-1")
_PACIFIC = ("ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "ap-south-1")
_FAR = ("eu-west-1", "eu-central-1", *_PACIFIC)

NEAREST: dict[str, tuple[str, ...]] = {
    "us-east-1": ("us-east-2", "us-west-2", "us-west-1", "ca-central-1", *_FAR),
    "us-east-2": ("us-east-1", "us-west-2", "us-west-1", "ca-central-1", *_FAR),
    "us-west-1": (*_US_WEST, *_PACIFIC, "eu-west-1", "eu-central-1"),
    "us-west-2": ("us-west-1", *_US_WEST[1:], *_PACIFIC, "eu-west-1", "eu-central-1"),
    "ca-central-1": ("us-east-2", "us-east-1", "us-west-2", "us-west-1", *_FAR),
    "eu-west-1": ("eu-west-2", "eu-central-1", "eu-north-1", *_US_EAST, "ap-south-1", "ap-southeast-1"),
    "eu-west-2": ("eu-west-1", "eu-central-1", "eu-north-1", *_US_EAST, "ap-south-1", "ap-southeast-1"),
    "eu-central-1": ("eu-west-1", "eu-west-2", "eu-north-1", *_US_EAST, "ap-south-1", "ap-southeast-1"),
    "eu-north-1": ("eu-central-1", "eu-west-1", "eu-west-2", *_US_EAST, "ap-south-1", "ap-southeast-1"),
    "ap-south-1": (*_PACIFIC[:3], "eu-west-1", "eu-central-1", *_US_WEST[:1], "us-west-1", *_US_EAST[:2]),
    "ap-northeast-1": ("ap-southeast-1", "ap-southeast-2", "ap-south-1", *reversed(_US_EAST), *_EUROPE[::2]),
    "ap-southeast-1": ("ap-southeast-2", "ap-northeast-1", "ap-south-1", *reversed(_US_EAST), *_EUROPE[::2]),
    "ap-southeast-2": ("ap-southeast-1", "ap-northeast-1", "ap-south-1", *reversed(_US_EAST), *_EUROPE[::2]),
}
"""For the names of AWS; `NEAREST_REGIONS` adds to it and replaces its rows."""


class Regions:
    """The order of regions as one of them sees them.

    Args:
        own: the edge's region.
        nearest: rows of `NEAREST_REGIONS`: a region, and the others by distance from it.
    """

    def __init__(self, own: str, nearest: Mapping[str, tuple[str, ...]]) -> None:
        listed = nearest.get(own) or NEAREST.get(own, ())
        self._rank = {
            name: rank for rank, name in enumerate((own, *(name for name in listed if name != own)))
        }

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return the names sorted: the edge's own, those that are listed, the others by name."""
        return sorted(names, key=lambda name: (self._rank.get(name, len(self._rank)), name))
