"""A test file for every module, under its name, and a module for every test file. The exceptions stand here by name."""

from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "mlx_qwen3"
# Modules without a file of their own -> where they are tested, and why there
ELSEWHERE = {
    "progress.py": "cli/test_progress.py",  # a type and what it counts, which the bar draws
    "cli/options.py": "cli/test_generate.py",  # options that a command declares
    "cli/models.py": "cli/test_generate.py",  # what generate and chat begin with
    "cli/chat_commands.py": "cli/test_chat.py",  # every one acts on a chat
    "server/answers.py": "server/test_openapi.py",  # types, from which the document is made
    "server/requests.py": "server/test_openapi.py",
    "server/service.py": "server/test_generation.py",  # what the endpoints share
    # A contestant is imported only in a process of its own, which a whole run starts.
    "bench/workers/on_mlx.py": "bench/test_session.py",
    "bench/workers/ours.py": "bench/test_session.py",
    "bench/workers/listen.py": "bench/test_serving.py",
    "bench/workers/our_server.py": "bench/test_serving.py",
    "bench/workers/peer_mlx_lm_server.py": "bench/test_serving.py",
    "bench/workers/peer_mlx_lm.py": "bench/test_session.py",
    "bench/workers/peer_reference.py": "bench/test_session.py",
    "bench/workers/peer_transformers.py": "bench/test_session.py",
}
# Test files that are about no single module
BEYOND = {
    "conversion/test_experts.py",  # the three forms of experts, through the whole conversion
    "test_house.py",  # which folder imports which
    "test_mirror.py",
    "test_names.py",  # what is public
    "test_docs.py",
    "test_full_size.py",
    "test_snapshots.py",  # what each command shows
    "test_fine_tunes.py",  # folders as training leaves them
    "server/test_openai_client.py",  # the client of others
    "server/test_other_clients.py",
    "server/test_examples.py",  # of docs/server.md
    "inspect/test_page_look.py",  # in a browser
    "server/test_page.py",
    "server/test_page_look.py",
    "server/test_page_text.py",
    "server/test_schemathesis.py",  # random requests
    "server/test_soak.py",  # a crowd
    "demo/test_demo.py",  # the trained models in the package
    "demo/test_demo_moe.py",
    "model/test_mutations.py",  # mistakes that are planted in the whole model
}


def test_every_module_has_its_test_file():
    names = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    assert len(names) > 80
    lacking = {name.as_posix() for name in names if not (TESTS / name.parent / f"test_{name.name}").exists()}
    assert lacking == ELSEWHERE.keys(), "write the test file, or name the module in ELSEWHERE with the reason"
    assert all((TESTS / place).exists() for place in ELSEWHERE.values())


def test_every_test_file_has_its_module():
    names = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    modules = {name.as_posix(): PACKAGE / name.parent / name.name.removeprefix("test_") for name in names}
    assert {name for name, module in modules.items() if not module.exists()} == BEYOND
