"""The recipe of a clean embedded corpus is a value that comes back from its JSON."""

from __future__ import annotations

import json

from nachim.data.pipeline import Pipeline
from recipes.clean_stdlib import pipeline


def test_the_recipe_is_a_value():
    made = pipeline()
    assert Pipeline.from_json(json.loads(json.dumps(made.to_json()))) == made == pipeline()
    assert made.fingerprint == pipeline().fingerprint
    assert all(origin.licence != "not stated" for origin in made.origins)
