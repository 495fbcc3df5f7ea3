"""The settings of the server, read from environment variables and flags and validated at startup.

Flags override the ``LLAVA_*`` variables. ``python -m llava_server --help`` lists all flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from llava_wire.base_settings import ServiceSettings
from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from llava_server.images.color import Transparency
from llava_server.images.host_rules import HOST_RULE
from llava_server.log_format import LogFormat
from llava_server.middleware.cors import check_cors_access, check_origin
from llava_server.middleware.hosts import check_host_rule, is_loopback

__all__ = ["Settings", "load_settings"]

_MIN_KEY_LENGTH = 8
_MAX_PORT = 65535


class Settings(ServiceSettings):
    """The settings of one controller."""

    program: ClassVar[str] = "llava-server"
    model_config = SettingsConfigDict(cli_prog_name="python -m llava_server")

    host: str = Field(
        "127.0.0.1", description="Address to listen on. Use 0.0.0.0 to listen on all interfaces."
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on. 0 selects any free port.")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of controller processes that share the port. Each process has its own "
        "connections, caches and image decoders, so limits per controller apply to each of them.",
    )
    admin_host: str = Field(
        "127.0.0.1", description="Address to listen on for the admin port, which does not require an API key."
    )
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port for /metrics, health checks and /workers. If not set, the API port serves "
        "/metrics and requires an API key for it. With several controller processes, each has its own admin "
        "port, starting with this one, and the API port does not serve /metrics.",
    )
    auth: bool = Field(
        True,
        description="Require an API key. If disabled, any client that can reach the port can use the API.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Comma-separated API keys, in addition to those managed with 'llava-serve keys'.",
    )
    api_keys_file: Path | None = Field(
        None, description="Path to a file with one API key per line. Keep this file secret."
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated origins of web pages that may call the API from a browser, such as "
        "https://app.example.com, or * for all origins. If empty, CORS is disabled. Without authentication, "
        "only exact origins and a loopback host are allowed.",
    )

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated hosts that clients may use in the server's URL: names without a port, "
        "*.name for subdomains, or * for any host. localhost and loopback addresses are always allowed. "
        "Other IP addresses are allowed unless the server listens on a loopback address. If empty, any host "
        "is allowed, except on a loopback address without authentication. The admin port also allows "
        "LLAVA_ADMIN_HOST, and ignores *.",
    )

    max_connections: int = Field(
        2048,
        ge=16,
        le=100_000,
        description="Maximum number of client connections. Above the limit, a new connection replaces an "
        "idle or stalled one, or is rejected with 503. The limit on open files (ulimit -n) can reduce it.",
    )
    max_address_connections: int = Field(
        1024,
        ge=1,
        le=100_000,
        description="Maximum number of connections per client address (per /64 network for IPv6). If it is "
        "less than the maximum number of all connections, an address may also have only as many connections "
        "as are free. Behind a reverse proxy, all connections have the address of the proxy.",
    )
    header_timeout_s: float = Field(
        10.0, gt=0, le=3600, description="Maximum time to receive the headers of a request, in seconds."
    )
    idle_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Time after which a connection without a request is closed, in seconds.",
    )
    max_unsent_mb: int = Field(
        128,
        ge=1,
        le=65536,
        description="Maximum total size of response data that clients have not read yet, in MiB. Above the "
        "limit, the connections that have been stalled longest are closed.",
    )
    max_body_mb: int = Field(32, ge=1, le=128, description="Maximum size of a request body, in MiB.")
    max_inflight_body_mb: int = Field(
        512,
        ge=1,
        le=65536,
        description="Maximum total size of all request bodies and loaded stored data in memory, in MiB. "
        "Requests above the limit fail with 503.",
    )
    max_tenant_inflight_body_mb: int = Field(
        96,
        ge=1,
        le=65536,
        description="Maximum total size of the request bodies and loaded stored data of one API key in "
        "memory, in MiB, for each controller. Requests above the limit fail with 429.",
    )
    body_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Maximum time to receive a request body, in seconds."
    )
    max_open_requests: int = Field(
        1024,
        ge=1,
        le=100_000,
        description="Maximum number of concurrent POST requests. Requests above the limit fail with 503.",
    )
    max_tenant_requests: int = Field(
        384,
        ge=1,
        le=100_000,
        description="Maximum number of concurrent requests per API key and controller, with any method. If "
        "it is less than the maximum number of all requests, a key may also have only as many as are left. "
        "Requests above the limit fail with 429.",
    )
    max_text_kb: int = Field(
        1024, ge=1, le=65536, description="Maximum size of the text in one request, in KiB."
    )
    max_images: int = Field(8, ge=0, le=64, description="Maximum number of images per request.")
    max_image_mb: int = Field(20, ge=1, le=128, description="Maximum file size of one image, in MiB.")
    max_image_mp: int = Field(40, ge=1, le=178, description="Maximum size of one image, in megapixels.")
    image_transparency: Transparency = Field(
        "white",
        description="How transparent images are converted to RGB. 'white' composites them on white; 'drop' "
        "drops the alpha channel without blending, as the original LLaVA does.",
    )
    image_workers: int = Field(
        4,
        ge=1,
        le=64,
        description="Maximum number of image decoder processes. Only one of them is started before images "
        "arrive at the same time. One API key uses at most half of them at a time (rounded up), so that the "
        "others can decode images of other API keys.",
    )
    image_cache_mb: int = Field(
        64, ge=0, le=65536, description="Maximum size of the cache of preprocessed images, in MiB."
    )

    image_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated hosts from which images may be fetched: name, *.name or name:port. "
        "If empty, fetching is disabled.",
    )
    image_allow_http: bool = Field(False, description="Allow http:// image URLs in addition to https://.")
    image_fetch_timeout_s: float = Field(
        10.0, gt=0, le=120, description="Maximum time to fetch one image, in seconds."
    )

    max_queued: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Maximum number of jobs waiting for a worker, per model. "
        "Requests above the limit fail with 503.",
    )
    max_queued_tokens: int = Field(
        10_000_000,
        ge=1,
        le=10**12,
        description="Maximum estimated number of tokens in all waiting jobs, per model. "
        "Requests above the limit fail with 503.",
    )
    max_tenant_jobs: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Maximum number of waiting and running jobs per API key. "
        "Requests above the limit fail with 429.",
    )
    max_tenant_tokens: int = Field(
        10_000_000,
        ge=1,
        le=10**12,
        description="Maximum estimated number of tokens in waiting and running jobs, per API key. "
        "Requests above the limit fail with 429.",
    )
    # The budgets of the data that clients store in Redis (see redis_budgets.py).
    max_all_jobs_mb: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="Maximum total size of the prompts and outputs of waiting, running and recently "
        "finished requests, in MiB of Redis memory. By default, 20% of Redis's maxmemory. Requests above the "
        "limit fail with 503, or with 429 if the API key uses more than is free.",
    )
    max_all_images_mb: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="Maximum total size of preprocessed images, in MiB. By default, 25% of Redis's "
        "maxmemory or, with LLAVA_IMAGE_STORE, 70% of the space in the store. Requests above the limit fail "
        "with 503, or with 429 if the API key uses more than is free.",
    )
    file_days: float = Field(7.0, gt=0, le=365, description="Retention time for files and batches, in days.")
    max_files: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Maximum number of files per API key. Uploads above the limit fail with 429.",
    )
    max_files_mb: int = Field(
        128,
        ge=1,
        le=65536,
        description="Maximum total size of files and batches per API key, in MiB of Redis memory. "
        "Uploads above the limit fail with 429.",
    )
    max_all_files_mb: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="Maximum total size of files and batches across all API keys, in MiB of Redis memory. "
        "By default, 20% of Redis's maxmemory. Uploads above the limit fail with 503, or with 429 if the API "
        "key uses more than is free.",
    )
    stored_days: float = Field(
        7.0,
        gt=0,
        le=365,
        description="Retention time for stored responses and chat completions, in days. Continuing a "
        "conversation restarts it.",
    )
    max_stored_mb: int = Field(
        64,
        ge=1,
        le=65536,
        description="Maximum total size of stored responses and chat completions per API key, in MiB of "
        "Redis memory. Above the limit, the oldest ones are removed.",
    )
    max_all_stored_mb: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="Maximum total size of stored responses and chat completions across all API keys, in MiB "
        "of Redis memory. By default, 15% of Redis's maxmemory. Above the limit, or if the API key uses more "
        "than is free, the oldest ones are removed.",
    )
    max_batches: int = Field(
        16,
        ge=1,
        le=1000,
        description="Maximum number of unfinished batches per API key. "
        "Batches above the limit fail with 429.",
    )
    max_batch_lines: int = Field(
        10_000, ge=1, le=100_000, description="Maximum number of requests per batch."
    )
    max_batch_output_mb: int = Field(
        64, ge=1, le=1024, description="Maximum total size of the results of one batch, in MiB."
    )
    batch_parallel: int = Field(
        8,
        ge=1,
        le=1024,
        description="Maximum number of batch requests that each controller keeps in the queue at a time.",
    )
    request_timeout_s: float = Field(
        600.0, gt=0, le=86400, description="Maximum time from submission to the last token, in seconds."
    )
    queue_timeout_s: float = Field(
        300.0, gt=0, le=86400, description="Maximum time from submission to the first token, in seconds."
    )
    send_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Maximum time for a client to read the next 64 KiB of a response that is ready to be "
        "sent, in seconds. If exceeded, the connection is closed.",
    )
    on_demand_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated names of models whose workers are started on demand, for example by "
        "KEDA. While such a model has no worker, its requests wait for up to LLAVA_QUEUE_TIMEOUT_S instead "
        "of failing with 503.",
    )
    keepalive_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Interval between keepalive comments while a stream has no output, in seconds.",
    )

    orphan_grace_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Maximum time for the client of a resumable response to reconnect, in seconds. "
        "If the client does not reconnect in time, the response is cancelled.",
    )

    demo_socket: Path | None = Field(
        None,
        description="Unix socket of llava-serve up --demo, through which the playground kills workers. "
        "Requires a loopback address.",
    )

    drain_timeout_s: float = Field(
        120.0,
        ge=0,
        le=86400,
        description="Maximum time for in-flight requests to finish after SIGTERM, in seconds.",
    )
    drain_grace_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="Time after SIGTERM during which new requests are still accepted, in seconds.",
    )
    allow_eviction: bool = Field(
        False,
        description="Start even if Redis may evict keys of running requests (maxmemory-policy).",
    )
    log_format: LogFormat = Field(
        "text", description="Log format: text, or json for one JSON object per line."
    )

    @field_validator(
        "api_keys", "image_hosts", "cors_origins", "allowed_hosts", "on_demand_models", mode="before"
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value

    @field_validator("image_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in value)
        for host in hosts:
            if not HOST_RULE.fullmatch(host):
                raise ValueError(
                    f"{host!r} is not a host name, *.name or name:port; IP addresses are not supported"
                )
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_origin, value))

    @field_validator("allowed_hosts")
    @classmethod
    def _check_allowed_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_host_rule, value))

    @model_validator(mode="after")
    def _check_admin_ports(self) -> Settings:
        if not self.admin_port:
            return self
        ports = range(self.admin_port, self.admin_port + self.processes)
        if ports[-1] > _MAX_PORT:
            raise ValueError(
                f"LLAVA_ADMIN_PORT / --admin-port is {self.admin_port}, but {self.processes} controller "
                f"processes use as many consecutive ports, and the highest port is {_MAX_PORT}. Set a lower "
                "port."
            )
        if self.port in ports and self.host == self.admin_host:
            used = f"port {ports[0]}" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]}"
            raise ValueError(
                f"LLAVA_PORT / --port is {self.port}, but the server also uses the admin {used} "
                "(LLAVA_ADMIN_PORT / --admin-port). Set a different port."
            )
        return self

    @model_validator(mode="after")
    def _check_cors(self) -> Settings:
        check_cors_access(self.cors_origins, host=self.host, has_auth=self.auth)
        return self

    @model_validator(mode="after")
    def _check_demo(self) -> Settings:
        if self.demo_socket and not is_loopback(self.host):
            raise ValueError(
                "LLAVA_DEMO_SOCKET / --demo-socket lets every client kill workers, so it requires a loopback "
                f"address, and LLAVA_HOST is {self.host}. Remove one of the two settings."
            )
        return self

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < _MIN_KEY_LENGTH for key in value):
            raise ValueError(f"each API key must have at least {_MIN_KEY_LENGTH} characters")
        return value


def load_settings(arguments: Sequence[str]) -> Settings:
    """Read the settings of the server. Exit with status 2 and an error message if a value is invalid."""
    return Settings.load(arguments)
