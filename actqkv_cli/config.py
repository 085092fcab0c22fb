"""Settings: a flag, else ACTQKV_* in the environment, else config.toml, else the default."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings import PydanticBaseSettingsSource as Source

from actqkv_cli.errors import UsageError

BUDGET = 2048  # tokens attended per layer while a document is read, unless a setting says otherwise
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def config_file() -> Path:
    """Asked for every time: the worker reads the settings of clients whose folders may differ."""
    return platformdirs.user_config_path("actqkv") / "config.toml"


def _duration(value: object) -> float:
    """Seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(value).strip())
    if found is None:
        raise ValueError(f"should be a duration such as 90s, 10m or 2h, or 0, and not {str(value)!r}")
    return float(found[1]) * _SECONDS[found[2]]


def _window(tokens: int) -> int:
    if tokens not in (128, 256, 512, 1024, 2048, 4096):  # whole blocks, of which a segment is a multiple
        raise ValueError(f"a window is 128, 256, 512, 1024, 2048 or 4096 tokens, not {tokens}")
    return tokens


class Settings(BaseSettings):
    """Sizes in bytes or tokens as named; `home` holds documents, `cache` models and their calibration."""

    model_config = SettingsConfigDict(env_prefix="ACTQKV_", extra="forbid", frozen=True, env_ignore_empty=True)

    home: Path = Field(default_factory=lambda: platformdirs.user_data_path("actqkv"))
    cache: Path = Field(default_factory=lambda: platformdirs.user_cache_path("actqkv"))
    model: str = "default"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    offline: bool = False
    disk_limit: ByteSize | None = None  # of the whole library
    budget: int | None = Field(default=None, ge=96, le=1 << 20)  # tokens
    window: Annotated[int, AfterValidator(_window)] = 512  # tokens read at once
    positions: Literal["clamped", "compact", "original"] = "clamped"
    prefill: Literal["windowed", "full"] = "windowed"
    representative: Literal["mean", "anchor"] = "mean"
    score: Literal["dot", "cosine"] = "dot"
    baselines: bool = False
    policy: str = "hybrid"
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    token: SecretStr | None = Field(default=None, min_length=1)  # that clients of the server must show
    keep_alive: Annotated[float, BeforeValidator(_duration)] = 600.0  # seconds; 0: no worker

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Source,
        env_settings: Source,
        *_: Any,
        **__: Any,
    ) -> tuple[Source, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())


def load_settings(**flags: Any) -> Settings:
    """The settings in force; flags that are None were not given. Raises UsageError that names what is wrong."""
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")  # pydantic's word for what we said ourselves
        raise UsageError(f"setting {name}: {message}", f"see the flags, ACTQKV_*, and {config_file()}") from None
    except (OSError, ValueError) as error:  # tomllib's error is a ValueError
        raise UsageError(f"cannot read {config_file()}: {error}") from None
    return settings.model_copy(update={"home": settings.home.expanduser(), "cache": settings.cache.expanduser()})
