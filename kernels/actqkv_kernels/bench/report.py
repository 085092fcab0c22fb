"""The record as plain tables for people."""

from collections.abc import Iterable, Iterator

from actqkv_kernels.bench.checks import Record

_HEAD = ("case", "of", "error", "allowed", "us", "p20", "p80", "from", "GB/s", "copy", "read", "same", "GFLOP/s", "mm")
_WIDTHS = (33, 30, 7, 9, 11, 11, 11, 8, 9, 6, 6, 7, 10, 5)
_SHARES = ("copy", "read", "copy_of_as_much")


def header_lines(record: Record) -> Iterator[str]:
    """The machine, its ceilings, what the columns mean, and their titles."""
    machine, ceilings = record["machine"], record["ceilings"]
    if gpu := machine["gpu"]:
        yield (
            f"{gpu['name']}: {gpu['multiprocessors']} multiprocessors, {gpu['memory_bytes'] / 2**30:.0f} GiB, "
            f"L2 of {gpu['cache_bytes'] / 2**20:.0f} MiB, driver {gpu['driver']}"
        )
    yield f"{machine['processor']}: {machine['cores']} cores, {machine['threads']} threads; {machine['system']}"
    versions = (f"{name} {number}" for name, number in record["versions"].items() if number)
    yield f"{', '.join(versions)}; commit {record['commit'] or 'unknown'}"
    if "problem" in ceilings:
        yield f"ceilings: failed: {ceilings['problem']}"
    else:
        yield (
            f"ceilings: copy {ceilings['copy_bytes_per_second'] / 1e9:,.1f} GB/s (read and written), "
            f"read {ceilings['read_bytes_per_second'] / 1e9:,.1f} GB/s, "
            f"bf16 product {ceilings['matmul_operations_per_second'] / 1e9:,.0f} GFLOP/s"
        )
    yield ""
    if gpu:
        yield "us: a call's median in a CUDA graph of calls whose inputs take turns; from: where they then come from."
    else:
        yield "error: of small calls, interpreted; us: a call's median, larger, of the torch path: there is no GPU."
    if record["unchecked"]:
        yield f"no kernel was checked: {record['unchecked']}"
    yield "copy, read, same, mm: shares of the rates at which large buffers are copied and read, as many bytes"
    yield "as the case moves are copied, and bf16 matrices are multiplied."
    yield ""
    yield _line(_HEAD)


def case_lines(case: Record) -> Iterator[str]:
    """A case's row, and one for each of its rivals."""
    line = [case["name"], case.get("shape", ""), _small(case.get("error")), _small(case.get("allowed"))]
    if "milliseconds" not in case:
        yield f"{_line(line)}  {_why_not(case)}"
        return
    shares, operations = case["shares"], case["operations_per_second"]
    line += [*_microseconds(case), "memory" if case["from_memory"] else "cache"]
    line += [f"{case['bytes_per_second'] / 1e9:,.1f}", *(_percent(shares.get(name)) for name in _SHARES)]
    line += [f"{operations / 1e9:,.0f}" if operations else "", _percent(shares.get("matmul"))]
    yield _line(line)
    for rival in case["rivals"]:
        line = [f"  {rival['name']}", "", _small(rival.get("error")), ""]
        if "milliseconds" in rival:
            times = rival["milliseconds"]["median"] / case["milliseconds"]["median"]
            yield f"{_line([*line, *_microseconds(rival)])}  {times:.2f} times as long"
        else:
            yield f"{_line(line)}  {_why_not(rival)}"


def compiled_lines(rows: Iterable[Record]) -> Iterator[str]:
    """What `compile_apart` found, a row for each kernel."""
    yield ""
    yield "compiled for                     capability  kernel               registers  stack  shared  matrix units"
    for row in rows:
        where = f"{row['case']:<33}{row['capability'] or '':>10}"
        if "problem" in row:
            yield f"{where}  failed: {row['problem']}"
        for kernel in row.get("kernels", ()):
            numbers = f"{kernel['registers']:>9}{kernel['stack']:>7}{kernel['shared']:>8}"
            yield f"{where}  {kernel['name']:<21}{numbers}  {'yes' if kernel['matrix_units'] else 'no':>12}"


def _why_not(record: Record) -> str:
    state = "failed" if record["correct"] else "wrong"
    return f"{state}, not timed" + (f": {record['problem']}" if "problem" in record else "")


def _line(cells: Iterable[str]) -> str:
    placed = zip(cells, _WIDTHS, "<<" + ">" * len(_WIDTHS), strict=False)
    return "".join(f"{cell:{side}{width}}" for cell, width, side in placed).rstrip()


def _microseconds(timed: Record) -> list[str]:
    times = (timed["milliseconds"][name] * 1e3 for name in ("median", "p20", "p80"))
    return [f"{time:,.1f}" if time < 1e3 else f"{time:,.0f}" for time in times]


def _small(number: float | None) -> str:
    return "" if number is None else f"{number:.0e}" if number else "0"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
