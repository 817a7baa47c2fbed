"""What the times were measured on: processor, caches, versions, load."""
import os
import platform
from pathlib import Path


def describe(contenders, limit):
    """JSON-ready. limit is None where no compiler was found to measure it."""
    configs = [contender.fastbn.get_config() for contender in contenders if hasattr(contender, "fastbn")]
    return {
        "cpu": _cpu_model(),
        "processors": os.cpu_count(),
        "caches": _caches(configs[0] if configs else {}),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {contender.name: contender.version() for contender in contenders},
        "limit": limit is not None,
        "fastbn": configs[0] if configs else None,
    }


def same(a, b):
    """Whether times of the two may stand in one table."""
    return all(a[key] == b[key] for key in ("cpu", "processors", "python", "versions", "limit"))


def memory_bytes():
    """All of the machine's memory, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _cpu_model():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches(config):
    """Bytes of the second and the last level, as fastbn sees them, or as Linux tells."""
    found = [config.get("cache_bytes") or [None] * 3, _caches_of_linux()]
    return {name: next((sizes[level] for sizes in found if sizes[level]), None)
            for name, level in (("l2", 1), ("llc", 2))}


def _caches_of_linux():
    sizes = [None] * 3
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, kind, size = (folder.joinpath(name).read_text().strip() for name in ("level", "type", "size"))
            if kind != "Instruction" and 1 <= int(level) <= 3:
                sizes[int(level) - 1] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return sizes
