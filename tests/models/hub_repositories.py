"""What repositories of the stand-in for the Hub hold: official checkpoints, files nobody needs, and code that must not run."""

import json

from arkfast.testing import tiny_checkpoint

MARK = "EXECUTED"
"""Variable with the path of a file that the repositories' code would write."""
CODE = f"import os, pathlib\npathlib.Path(os.environ['{MARK}']).touch()\nraise SystemExit('code of the repository ran')\n".encode()
NEEDLESS = {
    "modeling_arkasr.py": CODE,
    "configuration_arkasr.py": CODE,
    "processing_arkasr.py": CODE,
    "custom_generate/generate.py": CODE,
    "pytorch_model.bin": b"a pickle" * 999,
    "training_args.bin": b"a pickle",
    "consolidated.safetensors": b"the same weights once more" * 99,
    "model.gguf": b"gguf" * 99,
    "onnx/model.onnx": b"onnx" * 99,
    "onnx/config.json": b"{}",
    "README.md": b"# A model\n",
    ".gitattributes": b"*.safetensors filter=lfs\n",
}
REMOTE_CODE = {
    "AutoConfig": "configuration_arkasr.ArkasrConfig",
    "AutoModelForCausalLM": "modeling_arkasr.ArkasrForConditionalGeneration",
    "AutoProcessor": "processing_arkasr.ArkasrProcessor",
}


def make_models(root):
    """Three tiny checkpoints in the official layout, of which the last one has its weights in shards."""
    for seed, name in enumerate(("one", "two")):
        tiny_checkpoint(root / name, seed=seed)
        for file in ("config.json", "processor_config.json"):
            fields = json.loads((root / name / file).read_text())
            (root / name / file).write_text(json.dumps(fields | {"auto_map": REMOTE_CODE}))
    from arkfast.models import ArkasrProcessor, load_model

    load_model(root / "one").save_pretrained(root / "sharded", max_shard_size="150KB")
    ArkasrProcessor.from_pretrained(root / "one").save_pretrained(root / "sharded")
    assert len(list((root / "sharded").glob("*.safetensors"))) >= 3
    return root
