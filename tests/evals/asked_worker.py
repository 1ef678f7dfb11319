"""A stand-in for ``agents.asked`` that has nothing to import: says where it is, waits, fails or dies."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from agents.answering import answer


def work(question: Any) -> Any:
    match question:
        case {"wait": folder}:
            try:
                Path(folder, "begun").write_text(str(os.getpid()))
                time.sleep(60)
            except KeyboardInterrupt:
                Path(folder, "interrupted").touch()
                raise
        case {"fail": text}:
            raise ZeroDivisionError(text)
        case {"die": code}:
            os._exit(code)
    print("an env prints this")
    return question


if __name__ == "__main__":
    sys.exit(answer(work))
