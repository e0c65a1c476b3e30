import json
from typing import Any

import pytest

from stage1_detect.config import DetectorConfig, SelectionConfig
from store_schema.errors import ConfigError


@pytest.mark.parametrize(
    "config",
    [
        DetectorConfig(),
        DetectorConfig.resnet_c4("resnet101", pooler_size=7),
        DetectorConfig(cell_anchors=((0.0, 0.0, 1.0, 1.0),), anchor_sizes=(), anchor_ratios=()),
    ],
)
def test_a_config_survives_json(config: DetectorConfig) -> None:
    assert DetectorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vgg"}, "backbone must be one of"),
        ({"widths": (1, 2)}, "widths needs 4 numbers"),
        ({"head": "conv5"}, "no conv5"),
        ({"backbone": "resnet18"}, "widths has no effect"),
        ({"pooler": "roi_pool"}, "pooler_sampling"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, "pixel_std must be positive"),
        ({"pixel_mean": (1.0,)}, "pixel_mean needs 3 numbers"),
        ({"rpn_nms_thresh": 1.5}, "must lie in 0..1"),
        ({"short_side": 900}, "exceeds long_side"),
        ({"anchor_sizes": ()}, "at least one number"),
        ({"cell_anchors": ((0.0, 0.0, 1.0, 1.0),)}, "no effect with cell_anchors"),
        ({"cell_anchors": ((0.0, 0.0, 1.0),), "anchor_sizes": (), "anchor_ratios": ()}, "4 numbers"),
        ({"box_convention": "pixels"}, "box_convention must be one of"),
        ({"stem_pool": "ceil"}, "are for ResNets"),
        ({"backbone": "bottleneck", "widths": ()}, "blocks needs 4 numbers"),
        ({"backbone": "resnet50", "widths": (), "groups": 32}, "groups and width_per_group"),
        ({"backbone": "mobilenet_v2", "widths": (), "head": "conv5"}, "mobilenet_v2 has no conv5"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectorConfig(**changes)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'hiden_dim'"):
        DetectorConfig.from_dict({"hiden_dim": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "nms"}, "rule must be one of"),
        ({"order": "random"}, "order must be one of"),
        ({"rule": "max_nms", "score_thresh": 0.5}, "no effect with the rule 'max_nms'"),
    ],
)
def test_impossible_selections_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelectionConfig(min_regions=1, max_regions=2, **changes)
