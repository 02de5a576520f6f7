"""Options that contradict each other or the model are refused by name; tests/cli/test_inspect.py has the others."""

import pytest
from checkpoints import TINY

from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.inspect.options import Options, check_options

CONFIG = Qwen3Config.from_hf(TINY)
WRONG = {
    "no step": (Options(decode=0), "--decode is 0; expected 1 or more"),
    "a temperature without a step": (Options("hi", temperature=0.0), "--temp is for the reply to a prompt"),
    "a seed without a step": (Options("hi", seed=0), "--seed is for the reply to a prompt"),
    "other bits": (Options(kv_bits=5), "kv_bits is 5; expected 8 or 4"),
    "a head that does not divide": (Options(kv_bits=8), "kv_bits is 8, but the model's head_dim is 20, not a multiple"),
    "a template without a prompt": (Options(chat_template="rag"), "--chat-template is for a prompt; give --prompt too"),
    "a seed without a prompt": (Options(decode=1, seed=0), "--seed is for the reply to a prompt"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        check_options(options, CONFIG)


def test_what_fits_passes():
    check_options(Options("hi", decode=1, temperature=0.0, seed=0), CONFIG)
    check_options(Options(batch=2, length=3, decode=9), CONFIG)
