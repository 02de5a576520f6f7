"""The machine in words."""

from importlib.metadata import PackageNotFoundError, version

from mlx_qwen3.bench import machine


def test_versions_are_those_that_are_installed(monkeypatch):
    def look_up(package):
        if package == "torch":
            raise PackageNotFoundError
        return version(package)

    monkeypatch.setattr(machine, "version", look_up)
    found = machine.describe()
    assert (found["mlx"], found["torch"]) == (version("mlx"), "not installed")
    assert found["backend"].startswith("MLX ")
    assert found["chip"].endswith(" cores")


def test_a_chip_without_a_name_is_described_by_family_and_model(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu family\t: 6\nmodel\t\t: 167\nmodel name\t: unknown\n")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert machine._from_cpuinfo() == "unknown (family 6, model 167)"
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "none")
    assert machine._from_cpuinfo() == ""
