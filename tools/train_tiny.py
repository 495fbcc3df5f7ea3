"""Train the bundled tiny LLaVA from scratch and write its model folder in the llava-hf layout.

    python tools/train_tiny.py --minutes 90 --work DIR --out worker/llava_worker/tiny --resume

`tiny/` generates the images and questions. Nothing is downloaded. Training requires only two CPU cores.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from tiny.trainer import Trainer

_WORK = Path(tempfile.gettempdir()) / "train_tiny"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=90, help="training time in minutes (default 90)")
    parser.add_argument(
        "--work", type=Path, default=_WORK, help="folder for checkpoints and the training log"
    )
    parser.add_argument("--out", type=Path, help="folder for the trained model")
    parser.add_argument(
        "--resume", action="store_true", help="resume from the checkpoint in the --work folder"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    trainer = Trainer(minutes=args.minutes, work=args.work)
    if args.resume:
        trainer.resume()
    with trainer:
        while trainer.run():
            pass
    if args.out:
        from tiny.export import export_model

        export_model(trainer.model.state_dict(), args.out)


if __name__ == "__main__":
    main()
