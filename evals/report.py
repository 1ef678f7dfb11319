"""stub"""
from pathlib import Path
from typing import Any
def print_summary(results: dict[str, Any], path: Path|None) -> None:
    for k in ("arms","sampled_arms"):
        for a,v in results.get(k,{}).items(): print(k,a,v["success_rate"],v["invalid_rate"],v["mean_return"],v["prompt_tokens_per_turn"])
    print(results["comparison"],results["wall_seconds"],results["peak_rss_bytes"]/2**30, results["best_step"])
def write_report(path: Path, results: dict[str, Any]) -> None: ...
