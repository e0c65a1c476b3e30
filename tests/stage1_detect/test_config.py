import json
from typing import Any

import pytest

from stage1_detect.config import DetectorConfig
from store_schema.errors import ConfigError


@pytest.mark.parametrize("config", [DetectorConfig(), DetectorConfig.resnet_c4("resnet101", pooler_size=7)])
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
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectorConfig(**changes)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'hiden_dim'"):
        DetectorConfig.from_dict({"hiden_dim": 3})
