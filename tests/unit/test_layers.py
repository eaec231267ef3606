"""The architecture, checked: imports point down only, and what needs no torch loads none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "autoscale"

LAYERS = {
    "numerics": {
        "batch_order", "bench.equal_loss", "bench.standing", "comparison", "constraints",
        "decision", "designs", "estimate",
        "feasible_set", "foresight", "interior_point", "kernel", "law_choice", "masking", "mixture",
        "mixture_objective", "mixture_program", "objective", "optimum", "pareto", "permutation",
        "loss_curves", "pieces", "polytope",
        "primal_dual", "probes", "projection", "published_table", "quota_tree", "random_search",
        "repetition_rate", "residuals", "run_table", "sampler", "scaling_law", "schedule",
        "size_transfer", "solver", "stage_quotas", "token_count", "traffic", "tree_shape",
        "uncertainty",
        "laws.average", "laws.bimix",
        "laws.effective_tokens", "laws.fit", "laws.fitted_law", "laws.fitter", "laws.frame",
        "laws.inverse_sum", "laws.levenberg_marquardt", "laws.log_linear", "laws.mixture_term",
        "laws.power_sum", "laws.records", "laws.repetition", "laws.rescaled", "laws.separable",
        "laws.surface", "laws.terms", "laws.trees",
        "methods.ado", "methods.data_mixing_laws", "methods.domain_laws", "methods.doremi",
        "methods.exponential_law", "methods.fixed", "methods.group_dro", "methods.joint",
        "methods.method", "methods.nested_laws", "methods.olmix", "methods.one_at_a_time",
        "methods.problem", "methods.published_weights", "methods.registry", "methods.regmix",
        "methods.swarm", "methods.unimax", "methods.utilimax",
    },
    "data path": {
        "delivery", "file_mapping", "locations", "manifest", "manifest_records",
        "mixture_stream", "provenance", "records", "remote_ranges", "stream_plan", "token_store",
        "shard_formats.datatrove",
        "shard_formats.indexed", "shard_formats.indexed_writer", "shard_formats.llm_c",
        "shard_formats.npy", "shard_formats.raw", "shard_formats.registry",
        "shard_formats.token_file", "windows.contiguous", "windows.documents", "windows.fitting",
        "windows.form", "windows.opening", "windows.packed", "windows.ranges", "windows.reading",
    },
    "records": {
        "audit", "checkpoint_files", "claims", "config", "config_bench", "config_checks",
        "config_data",
        "config_execution", "config_method", "data", "deepspeed_file", "execution",
        "initial_weights", "job_watch", "memory", "model_shape", "run_folder", "run_records",
        "run_table_file",
        "processes", "runs", "shared_errors", "slurm_job", "stop_request",
    },
    "text": {
        "documents", "domain_shards", "existing_shards", "overlap", "prepare",
        "prepare_workers", "selection", "shard_names", "text", "text_bytes", "tokenizer",
        "token_datasets.arrow", "token_datasets.conversion", "token_datasets.mds", "verification",
    },
    "runtime": {
        "attention", "checkpoint", "diloco", "distributed", "elastic", "engine", "evaluation",
        "fork_server", "hardware", "harness", "language_model", "model", "non_finite",
        "partitioned",
        "prefetch", "run_log", "online", "online_ado", "online_doremi", "snapshot",
        "torch_stream", "trainer",
        "training_step", "votes", "worker",
    },
    "stages": {
        "bench.choices", "bench.job", "bench.path", "bench.plan", "bench.summary", "campaign",
        "carry_command", "downstream",
        "coordinator", "experiment_foresight", "experiment_memory",
        "experiment_table", "findings", "joint_fit", "joint_summary", "outcomes", "planning",
        "probe_length",
        "published_findings", "published_fit", "published_summary", "spending", "stages", "status",
        "summary", "supply", "table_commands", "table_options", "validation_sets", "wording",
    },
    "surface": {
        "__main__", "bench.figures", "bench.report", "bench.table", "cli",
        "decision_tables", "downstream_tables",
        "figure_style", "figures", "law_figures",
        "law_tables", "manifest_table", "memory_table", "plan_tables", "progress", "report",
        "status_table", "tables", "terminal",
    },
}  # fmt: skip
ORDER = list(LAYERS)
LAYER_OF = {module: ORDER.index(layer) for layer, modules in LAYERS.items() for module in modules}
WITH_TORCH = LAYERS["runtime"] | {"bench.job", "campaign", "coordinator"}
WITHOUT_TORCH = sorted(set(LAYER_OF) - WITH_TORCH - {"__main__"})
NUMERICS_IMPORTS = {"numpy", "scipy"}
LAZY_IMPORTS = {
    "cli": {"bench.job", "coordinator", "distributed"},  # the only commands that need torch
    "downstream": {"harness"},  # torch, and an optional extra
    "laws.trees": {"lightgbm"},  # an optional extra
    "worker": {"trainer"},  # the parent stays free of the training stack
}


def modules():
    """All modules of the package, those of a folder with its name: `laws.fit`."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return sorted(".".join(path.parts) for path in paths if path.name != "__init__")


def parse(module):
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())


def imports(module):
    """(imported module of this package, whether at the top of the file) for one module."""
    tree = parse(module)
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            top |= {id(child) for child in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = module.split(".")[: -node.level] + (node.module or "").split(".")
            name = ".".join(filter(None, base))
            inside = [f"{name}.{alias.name}".lstrip(".") for alias in node.names]
            for found in [name] if name in LAYER_OF else inside:
                yield found, id(node) in top


def test_every_module_has_a_layer():
    assert set(modules()) == set(LAYER_OF)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    for imported, at_top in imports(module):
        if imported not in LAYER_OF:  # a name of the package itself, such as __version__
            assert imported == "__version__"
            continue
        assert LAYER_OF[imported] <= LAYER_OF[module], f"{module} imports {imported}"
        assert at_top or imported in LAZY_IMPORTS.get(module, ()), f"{module}: {imported} inside"


@pytest.mark.parametrize("module", sorted(LAYERS["numerics"]))
def test_numerics_need_only_numpy_and_scipy(module):
    tree = parse(module)
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for root in (name.split(".")[0] for name in names):
            lazy = node not in tree.body and root in LAZY_IMPORTS.get(module, ())
            assert root in sys.stdlib_module_names or root in NUMERICS_IMPORTS or lazy, root


def test_everything_but_training_loads_no_torch():
    code = "\n".join(
        [f"import autoscale.{module}" for module in WITHOUT_TORCH]
        + [
            "import sys",
            "assert 'torch' not in sys.modules",
            "assert 'deepspeed' not in sys.modules",
            "assert 'lightgbm' not in sys.modules",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_but_the_surface_prints():
    for module in modules():
        calls = [
            n.func.id
            for n in ast.walk(parse(module))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert "print" not in calls or module in LAYERS["surface"], module
