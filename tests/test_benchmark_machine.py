"""How the benchmarks look at the machine: what others take of it, how fast it is, how near its cores are."""

import math
import os
import subprocess
import sys
import time

import pytest

from benchmarks import machine
from benchmarks.machine import Condition

CALM, BUSY, BUSIER, SLOW = Condition(), Condition(others=0.3), Condition(others=0.6), Condition(slowness=1.5)
APART = Condition(distance=1.8, farther=1.6)


def test_what_disturbs_is_what_others_take_how_slow_the_machine_is_and_how_far_apart_its_cores():
    for calm in (CALM, Condition(0.1, 1.25), Condition(distance=9.0, farther=1.25)):
        assert calm.calm
    assert not any(each.calm for each in (BUSY, SLOW, APART))
    assert BUSY.disturbance < SLOW.disturbance < APART.disturbance < BUSIER.disturbance
    assert Condition(0.6, 3.0).disturbance > BUSIER.disturbance


def test_the_machine_is_looked_at(monkeypatch):
    spent = {"all": 0.0, "own": 0.0, "now": 0.0, "products": iter([0.02, 0.01, 0.03, 0.02])}
    monkeypatch.setattr(machine, "_busy_seconds", lambda: spent["all"])
    monkeypatch.setattr(machine, "_own_seconds", lambda: spent["own"])
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine.time, "monotonic", lambda: spent["now"])

    class Yardstick:
        least, nearest = 0.01, 1.2
        distances = iter([1.5, 1.8, 1.8, 1.2])

        def seconds(self):
            return next(spent["products"])

        def distance(self):
            return next(self.distances)

    monkeypatch.setattr(machine, "_yardsticks", [Yardstick()])

    def work():
        spent.update(all=5.0, own=2.0, now=4.0)
        return "done"

    result, condition = machine.observe(work)
    assert result == "done"
    assert condition == pytest.approx((3 / 8, 1.5, 2 * 1.024**3 / 0.015, 1.8, 1.5))
    assert machine.observe(work)[1].farther == pytest.approx(1.5)  # at its start alone


class Readings(machine.Yardstick):
    """Cores of which it is given how long each reads what another wrote."""

    def __init__(self, *readings):
        super().__init__()
        self.readings = list(readings)

    def _reading(self, writer, reader):
        return self.readings[0][writer, reader]


NEAR, FAR = {(3, 3): 2.0, (4, 3): 2.0, (6, 3): 3.0}, {(3, 3): 2.0, (4, 3): 5.0, (6, 3): 3.0}


def test_cores_are_as_far_apart_as_the_farthest_of_them(monkeypatch):
    chosen = []
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {6, 3, 4}, raising=False)
    monkeypatch.setattr(machine.os, "sched_setaffinity", lambda _, cores: chosen.append(cores), raising=False)
    yardstick = Readings(FAR, NEAR, FAR)
    found = [(yardstick.distance(), yardstick.nearest, yardstick.readings.pop(0)) for _ in range(3)]
    assert [each[:2] for each in found] == [(2.5, 2.5), (1.5, 1.5), (2.5, 1.5)]
    assert chosen == [[3, 4, 6]] * 3  # and all of them are this process's again
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {3})
    assert Readings(NEAR).distance() == 1
    monkeypatch.delattr(machine.os, "sched_setaffinity")
    assert Readings({}).distance() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a thread choose its core")
def test_an_array_goes_from_core_to_core(monkeypatch):
    """The real one: it is written where it says and read where it says, and then the process has its cores back."""
    first, *others = cores = sorted(os.sched_getaffinity(0))
    chosen, choose = [], os.sched_setaffinity
    monkeypatch.setattr(machine.os, "sched_setaffinity", lambda who, to: (chosen.append(to), choose(who, to)))
    assert 0 < machine.Yardstick().distance() < math.inf
    expected = [core for writer in (first, *others) for core in [{writer}, {first}] * machine.HANDOVERS]
    assert chosen == [*expected, cores]
    assert sorted(os.sched_getaffinity(0)) == cores


def test_a_busy_neighbour_is_noticed_and_what_this_process_does_is_not(monkeypatch):
    """The real figures of the system; on a machine on which other tests run, too."""

    def spin(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    neighbour = "import time\nwhile time.process_time() < 0.6: pass"
    busy, own = machine._busy_seconds(), machine._own_seconds()
    spin(0.3)
    assert machine._own_seconds() - own >= 0.285  # told in hundredths
    subprocess.run([sys.executable, "-c", neighbour], check=True)  # a child's time is this process's own
    assert machine._own_seconds() - own >= 0.875
    assert machine._busy_seconds() - busy >= 0.85
