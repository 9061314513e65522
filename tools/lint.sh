#!/usr/bin/env bash
# All static checks. Each one runs even if one before it failed; the exit code tells whether all passed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
read -r -a folders <<<"${PYTHON_FOLDERS:-src tests tools}"
failed=()
check() {
    local name=$1 started=$SECONDS output
    shift
    if output=$("$@" 2>&1); then
        printf 'lint    %-16s ok  %3d s\n' "$name" $((SECONDS - started))
    else
        printf '%s\nlint    %-16s FAILED\n' "$output" "$name"
        failed+=("$name")
    fi
}
mapfile -t native < <(find native \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | sort)
mapfile -t shell < <(find tools slurm .ci benchmarks datasets -type f \( -name '*.sh' -o -name '*.sbatch' -o -path '.ci/run' \) 2>/dev/null | sort)

check "ruff check" ruff check "${folders[@]}"
check "ruff format" ruff format --check "${folders[@]}"
check "mypy" mypy
check "import rules" python tools/check_imports.py
check "assignments" python tools/check_assignments.py
check "docstrings" python tools/check_docstrings.py
[ ${#native[@]} -eq 0 ] || check "clang-format" clang-format --dry-run --Werror "${native[@]}"
if command -v shellcheck >/dev/null; then
    check "shellcheck" shellcheck "${shell[@]}"
fi
if [ ${#failed[@]} -gt 0 ]; then
    echo "lint: FAILED: ${failed[*]} (make format applies what can be applied)"
    exit 1
fi
echo "lint: all passed"
