"""Sets of values for the chart. Together, they use every template and most branches."""

from __future__ import annotations

from typing import Any

__all__ = ["EXTERNAL", "SCALED", "VALUE_SETS"]

EXTERNAL: dict[str, Any] = {
    "valkey": {"enabled": False},
    "redis": {
        "serverUrl": "rediss+cluster://server:pa%25ss@redis.example.com:6380?ssl_ca_certs=/run/secrets/redis/ca.crt",
        "workerUrl": "rediss+cluster://worker:secret@redis.example.com:6380",
        "tlsSecret": "redis-certificates",
        "ports": [6380],
        "peers": [{"ipBlock": {"cidr": "10.1.2.0/24"}}],
    },
}
SCALED: dict[str, Any] = {
    "models": {
        "small": {"servedName": "llava-hf/llava-1.5-7b-hf", "scaling": {"enabled": True}},
        "large": {"scaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 8}},
    }
}
_GPU: dict[str, Any] = {
    "models": {
        "llava-7b": {
            "image": "registry.example.com/llava-serve-worker-cuda:0.1.0",
            "model": "/models/llava-1.5-7b-hf",
            "gpus": 1,
            "runtimeClassName": "nvidia",
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
            "tolerations": [{"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"}],
            "modelVolume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
            "startupSeconds": 1805,
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "env": {"LLAVA_PRECISION": "bf16", "LLAVA_KV_CACHE_MB": 8192},
        },
        "llava-34b": {"model": "/models/llava-34b", "gpus": 4, "modelVolume": {"hostPath": {"path": "/srv"}}},
    }
}

VALUE_SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "gpu": _GPU,
    "hub": {
        "models": {
            "llava": {
                "model": "llava-hf/llava-1.5-7b-hf",
                "hub": {
                    "enabled": True,
                    "tokenSecret": "hub-token",
                    "cacheVolume": {"persistentVolumeClaim": {"claimName": "hub"}},
                },
            },
            "tiny": {},
        }
    },
    "replaced defaults": {
        "worker": {
            "modelVolume": {"persistentVolumeClaim": {"claimName": "models"}},
            "hub": {"enabled": True, "cacheVolume": {"persistentVolumeClaim": {"claimName": "hub"}}},
            "env": {"LLAVA_KV_CACHE_MB": 1_048_576, "LLAVA_HANG_TIMEOUT_S": 90.5, "LLAVA_OTEL": False},
        },
        "server": {"env": {"LLAVA_MAX_QUEUED_TOKENS": 20_000_000, "LLAVA_MAX_QUEUED": 1_000_000}},
        "models": {
            "a": {
                "modelVolume": {"hostPath": {"path": "/srv"}},
                "hub": {"cacheVolume": {"hostPath": {"path": "/cache"}}},
                "strategy": {"type": "Recreate"},
            },
            "b": {},
        },
    },
    "scale to zero": SCALED,
    "scaling with Prometheus": {**SCALED, "keda": {"metricsSource": "prometheus"}},
    "scaling with labels of Prometheus": {
        **SCALED,
        "keda": {"metricsSource": "prometheus", "prometheusLabels": {"cluster": "eu", "release": "demo"}},
    },
    "external cluster": EXTERNAL,
    "shards on several servers": {
        "redis": {
            "queueUrls": {
                "enabled": True,
                "server": "redis://server:a@queue-0 redis://server:b@queue-1",
                "worker": "redis://worker:c@queue-0 redis://worker:d@queue-1",
            },
            "queueShards": 4,
            "peers": [{"podSelector": {"matchLabels": {"app": "queue"}}}],
        },
    },
    "images on another Redis": {
        "imageStore": {
            "redis": {
                "enabled": True,
                "serverUrl": "redis://server:e@images",
                "workerUrl": "redis://worker:f@images",
            }
        },
        "redis": {"peers": [{"podSelector": {"matchLabels": {"app": "images"}}}]},
    },
    "images in a volume": {"imageStore": {"volume": {"persistentVolumeClaim": {"claimName": "images"}}}},
    "shards of a cluster": {**EXTERNAL, "redis": {**EXTERNAL["redis"], "queueShards": 3}},
    "external Sentinel": {
        "valkey": {"enabled": False},
        "redis": {
            "existingSecret": "sentinel",
            "ports": [6379, 26379],
            "peers": [{"podSelector": {"matchLabels": {"app": "redis"}}}],
        },
    },
    "external without policies": {
        **EXTERNAL,
        "redis": {**EXTERNAL["redis"], "peers": [], "ports": [6379]},
        "networkPolicy": {"enabled": False},
    },
    "own secret": {"redis": {"existingSecret": "llava-redis"}, "server": {"apiKeysSecret": "llava-keys"}},
    "ingress": {
        "ingress": {
            "enabled": True,
            "host": "llava.example.com",
            "tlsSecret": "llava-tls",
            "annotations": {
                "cert-manager.io/cluster-issuer": "letsencrypt",
                "nginx.ingress.kubernetes.io/proxy-body-size": "64m",
            },
        },
        "networkPolicy": {
            "clients": [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
            ]
        },
        "server": {"allowedHosts": ["llava.example.com"]},
    },
    "gateway": {
        "gateway": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
            "hostnames": ["llava.example.com"],
        },
        "server": {"queueTimeoutSeconds": 1200},
    },
    "tracing": {
        "worker": {"env": {"LLAVA_OTEL": True, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}},
        "networkPolicy": {
            "workerEgress": [
                {
                    "to": [{"podSelector": {"matchLabels": {"app": "collector"}}}],
                    "ports": [{"port": 4318, "protocol": "TCP"}],
                }
            ]
        },
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "fixed sizes": {
        "server": {
            "replicas": 3,
            "autoscaling": {"enabled": False},
            "podDisruptionBudget": {"enabled": False},
            "auth": False,
            "imageHosts": ["images.example.com", "*.example.org"],
            "env": {"LLAVA_MAX_IMAGES": 4, "LLAVA_IMAGE_ALLOW_HTTP": False, "LLAVA_LOG_FORMAT": "text"},
            "podAnnotations": {"prometheus.io/scrape": "false"},
        },
        "worker": {"replicas": 2, "drainSeconds": 120, "env": {"LLAVA_THREADS": 2}},
        "valkey": {"persistence": {"enabled": False}},
    },
    "placement": {
        "nameOverride": "vision",
        "imagePullSecrets": ["registry"],
        "server": {
            "nodeSelector": {"pool": "web"},
            "tolerations": [{"operator": "Exists"}],
            "podDisruptionBudget": {"maxUnavailable": "20%"},
        },
        "valkey": {
            "nodeSelector": {"pool": "data"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "persistence": {"size": "1.5Gi", "storageClassName": "fast"},
        },
    },
}
