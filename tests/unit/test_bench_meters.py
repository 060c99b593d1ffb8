"""What the benchmark of the Kubernetes part makes of counters."""

from __future__ import annotations

from benchmarks.kubernetes.meters import client_writes, grown, percentiles, reconciles, samples, server_writes

LINE = 'apiserver_request_total{{code="200",group="{}",resource="{}",subresource="{}",verb="{}"}} {}'
WORK = "workqueue_{}_duration_seconds_{}"


def server(*rows: tuple[str, str, str, str, int]) -> str:
    return "\n".join(LINE.format(*row) for row in rows)


def test_of_the_servers_writes_only_ours_count() -> None:
    before = server(("llmsafespace.dev", "warmpods", "", "PATCH", 5))
    after = server(
        ("llmsafespace.dev", "warmpods", "", "PATCH", 7),
        ("llmsafespace.dev", "warmpods", "status", "PATCH", 1),
        ("llmsafespace.dev", "warmpods", "", "LIST", 9),
        ("", "pods", "", "POST", 3),
        ("", "pods", "status", "PATCH", 9),  # the kubelet's
        ("", "pods", "binding", "POST", 9),  # the scheduler's
        ("", "pods", "", "DELETE", 9),  # the garbage collector's
        ("", "events", "", "POST", 9),
    )
    growth = grown(samples(before), samples(after))
    assert server_writes(growth) == {"PATCH warmpods": 2, "PATCH warmpods/status": 1, "POST pods": 3}


def test_a_process_counts_its_own_writes() -> None:
    text = 'rest_client_requests_total{code="201",host="h",method="POST"} 4.0\n'
    text += 'rest_client_requests_total{code="200",host="h",method="GET"} 9.0\n'
    assert client_writes(samples(text)) == 4


def test_reconciles_are_told_by_queue_in_milliseconds() -> None:
    text = "# HELP something\n"
    for part, name, value in (("work", "count", 4), ("work", "sum", 0.02), ("queue", "sum", 0.4)):
        text += f'{WORK.format(part, name)}{{name="pods"}} {value}\n'
    assert reconciles(samples(text)) == {"pods": {"count": 4, "waited": 100, "worked": 5}}


def test_percentiles_of_few_and_of_none() -> None:
    assert percentiles([]) == {}
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0}
    assert percentiles(range(100)) == {"p50": 50, "p90": 90, "p99": 99}
