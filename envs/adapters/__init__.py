"""Environments of other packages: ``--env textarena:FrozenLake-v0``.

An adapter is a module with ``make(name, env_kwargs)``, which gives a Gymnasium env, and ``words(env)``.
"""

from collections.abc import Mapping

ADAPTERS: Mapping[str, str] = {
    "textarena": "envs.adapters.textarena",
    "openenv": "envs.adapters.openenv",
}
"""What stands before the colon -> the module."""
