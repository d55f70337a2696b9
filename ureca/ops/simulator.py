"""Discrete-event simulation of a batch command: masks, trees, row actors, and the chat model that they share.

The simulation models workers, slots of the chat model, images and partitions in flight, the dependencies between an
image's questions, and the processors that all of them share. It leaves out Ray's own work, the network, and Ray Data's
limit on partitions that wait between operators: here they wait without bound, so their number is an upper bound.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ureca.ops.measured import Measured, Questions

Action = Callable[[], None]


@dataclass(frozen=True)
class Arrangement:
    """Workers and limits of a run.

    Attributes:
        cpus: processors; each actor or task keeps at most one of them busy.
        mask_actors: number of actors that generate masks.
        masks_on_cpu: masks are generated on processors; False: on GPUs, and take no processor's time.
        tree_tasks: number of trees that are built at a time.
        row_actors: number of actors that make the rows.
        partitions_in_flight: partitions in flight in each row actor.
        images_in_flight: images in flight in each row actor.
        requests_per_actor: requests in flight of each row actor at the chat model; ``math.inf``: any number.
        engine_slots: answers that the chat model writes at a time, over all its servers.
        stage: name of the operator that makes the rows.
    """

    cpus: float
    mask_actors: int
    masks_on_cpu: bool
    tree_tasks: int
    row_actors: int
    partitions_in_flight: int
    images_in_flight: int
    requests_per_actor: float
    engine_slots: float
    stage: str = "curate"


@dataclass(frozen=True)
class Service:
    """Durations of the work.

    Attributes:
        generate_s: seconds to generate the masks of an image.
        tree_s: seconds to build the tree of an image.
        step_s: seconds of a row actor's processor for each step: decoding, embedding, and each question.
        answer_s: seconds of an engine slot for each call: equally likely values.
        calls_per_question: mean number of calls for a question, at least 1.
    """

    generate_s: float
    tree_s: float
    step_s: float
    answer_s: Sequence[float]
    calls_per_question: float = 1.0


@dataclass(frozen=True)
class Moment:
    """Progress of a simulation at a point in time.

    Attributes:
        now_s: seconds since the beginning.
        num_images: number of finished images.
        busy_s: seconds that slots were busy so far, summed over the slots, by part.
    """

    now_s: float
    num_images: int
    busy_s: Mapping[str, float]


@dataclass
class Simulated:
    """Result of a simulation.

    Attributes:
        slots: capacity of each part: masks, tree, the row actors (by the name of their operator), engine, cpus,
            images_in_flight.
        quarter: moment when a quarter of the images was finished.
        three_quarters: moment when three quarters were; the run is in a steady state between both.
        end: moment when the last partition was finished.
        rows_s: seconds from the arrival of a partition at a row actor to its end, summed over the partitions.
        num_calls: number of calls of the chat model.
        max_images_decoded: most images decoded at a time, over all row actors.
        max_images_waiting: most images that waited for a row actor at a time, with their masks.
    """

    slots: Mapping[str, float]
    quarter: Moment
    three_quarters: Moment
    end: Moment
    rows_s: float
    num_calls: int
    max_images_decoded: int
    max_images_waiting: int


def simulate(
    measured: Measured, service: Service, arrangement: Arrangement, partition_sizes: Sequence[int]
) -> Simulated:
    """Simulate a run over partitions of the given sizes, whose images repeat the measured ones."""
    return _Simulation(measured, service, arrangement).run(partition_sizes)


class _Simulation:
    """State of a simulation: the shared resources, and the partitions that wait for a row actor."""

    def __init__(self, measured: Measured, service: Service, arrangement: Arrangement) -> None:
        self.measured, self.service, self.arrangement = measured, service, arrangement
        self.clock = clock = Clock()
        self.rng = random.Random(0)
        self.cpus = Slots(clock, arrangement.cpus)
        self.mask_actors = Slots(clock, arrangement.mask_actors)
        self.tree_tasks = Slots(clock, arrangement.tree_tasks)
        self.engine = Slots(clock, arrangement.engine_slots)
        self.actors = [_Actor(self, number) for number in range(arrangement.row_actors)]
        self.loads = [(0, number) for number in range(arrangement.row_actors)]
        self.decoded = Slots(clock)
        self.waiting = Slots(clock)
        self.queue: deque[tuple[int, int]] = deque()
        self.num_calls = self.num_done = 0
        self.rows_s = 0.0
        self.moments: list[Moment] = []

    def run(self, partition_sizes: Sequence[int]) -> Simulated:
        num_images = sum(partition_sizes)
        self.look_at = [math.ceil(num_images / 4), math.ceil(3 * num_images / 4)]
        first = 0
        for size in partition_sizes:
            self._generate(first, size)
            first += size
        self.clock.run()
        arrangement = self.arrangement
        return Simulated(
            slots={
                "masks": arrangement.mask_actors,
                "tree": arrangement.tree_tasks,
                arrangement.stage: arrangement.row_actors,
                "engine": arrangement.engine_slots,
                "cpus": arrangement.cpus,
                "images_in_flight": arrangement.row_actors * arrangement.images_in_flight,
            },
            quarter=self.moments[0],
            three_quarters=self.moments[-1],
            end=self._moment(),
            rows_s=self.rows_s,
            num_calls=self.num_calls,
            max_images_decoded=self.decoded.max_busy,
            max_images_waiting=self.waiting.max_busy,
        )

    def image_done(self) -> None:
        """Count a finished image."""
        self.num_done += 1
        for _ in range(self.look_at.count(self.num_done)):
            self.moments.append(self._moment())

    def _moment(self) -> Moment:
        busy_s = {
            "masks": self.mask_actors.busy_s,
            "tree": self.tree_tasks.busy_s,
            self.arrangement.stage: sum(actor.processor.busy_s for actor in self.actors),
            "engine": self.engine.busy_s,
            "cpus": self.cpus.busy_s,
            "images_in_flight": self.decoded.busy_s,
        }
        return Moment(self.clock.now_s, self.num_done, busy_s)

    def compute(self, worker: "Slots", seconds: float, then: Action) -> None:
        """Occupy a worker and one of the processors for some seconds."""

        def end() -> None:
            worker.release()
            then()

        worker.acquire(lambda: self.cpus.use(seconds, end))

    def _generate(self, first: int, size: int) -> None:
        def build() -> None:
            self.compute(self.tree_tasks, size * self.service.tree_s, arrive)

        def arrive() -> None:
            for _ in range(size):
                self.waiting.acquire(lambda: None)
            self.queue.append((first, size))
            self.hand_out()

        seconds = size * self.service.generate_s
        if self.arrangement.masks_on_cpu:
            self.compute(self.mask_actors, seconds, build)
        else:
            self.mask_actors.use(seconds, build)

    def hand_out(self) -> None:
        """Assign waiting partitions to the least loaded actors that accept more."""
        while self.queue and (actor := self._least_loaded()).num_partitions < self.arrangement.partitions_in_flight:
            first, size = self.queue.popleft()
            for _ in range(size):
                self.waiting.release()
            actor.start(first, size)

    def _least_loaded(self) -> "_Actor":
        """Return the actor with the fewest partitions; actors push each change of their number to a heap."""
        while True:
            num_partitions, number = self.loads[0]
            if self.actors[number].num_partitions == num_partitions:
                return self.actors[number]
            heapq.heappop(self.loads)


class _Actor:
    """A row actor, with one processor and limits on its images and requests in flight."""

    def __init__(self, simulation: _Simulation, number: int) -> None:
        arrangement = simulation.arrangement
        self.simulation = simulation
        self.number = number
        self.num_partitions = 0
        self.processor = Slots(simulation.clock, 1)
        self.images = Slots(simulation.clock, arrangement.images_in_flight)
        self.requests = Slots(simulation.clock, arrangement.requests_per_actor)

    def start(self, first: int, size: int) -> None:
        began_s, left = self.simulation.clock.now_s, size
        self._count(1)

        def image_done() -> None:
            nonlocal left
            self.simulation.decoded.release()
            self.simulation.image_done()
            self.images.release()
            left -= 1
            if not left:
                self._count(-1)
                self.simulation.rows_s += self.simulation.clock.now_s - began_s
                self.simulation.hand_out()

        images = self.simulation.measured.images

        def begin(number: int) -> None:
            self.simulation.decoded.acquire(lambda: _Image(self, images[number % len(images)], image_done).begin())

        for number in range(first, first + size):
            self.images.acquire(lambda number=number: begin(number))  # type: ignore[misc]

    def _count(self, change: int) -> None:
        self.num_partitions += change
        heapq.heappush(self.simulation.loads, (self.num_partitions, self.number))

    def ask(self, then: Action) -> None:
        """Ask the chat model a question, again where an answer is invalid."""
        service, rng = self.simulation.service, self.simulation.rng
        retries, fraction = divmod(service.calls_per_question - 1, 1)
        _Question(self, 1 + int(retries) + (rng.random() < fraction), then).render()


class _Question:
    """A question, asked one or more times.

    An object rather than closures that refer to each other: there are millions, and reference cycles would be left to
    the garbage collector, whose passes take longer the more objects are alive.
    """

    __slots__ = ("_actor", "_num_calls", "_then")

    def __init__(self, actor: _Actor, num_calls: int, then: Action) -> None:
        self._actor, self._num_calls, self._then = actor, num_calls, then

    def render(self) -> None:
        """Render the question on the actor's processor, then wait for a slot of the engine."""
        actor = self._actor
        actor.simulation.compute(actor.processor, actor.simulation.service.step_s, self._wait)

    def _wait(self) -> None:
        self._actor.requests.acquire(self._send)

    def _send(self) -> None:
        simulation = self._actor.simulation
        simulation.num_calls += 1
        simulation.engine.use(simulation.rng.choice(simulation.service.answer_s), self._answered)

    def _answered(self) -> None:
        self._actor.requests.release()
        self._num_calls -= 1
        if self._num_calls:
            self.render()
        else:
            self._then()


class _Image:
    """An image, whose steps run as soon as those before them are done."""

    def __init__(self, actor: _Actor, questions: Questions, done: Action) -> None:
        self._actor, self._questions, self._done = actor, questions, done
        self._num_before = list(questions.num_before)
        self._left = len(questions.kinds)

    def begin(self) -> None:
        """Run the first step, which decodes the image."""
        self._step(0)

    def _step(self, step: int) -> None:
        kind = self._questions.kinds[step]
        simulation = self._actor.simulation
        if kind == "wait":
            self._end(step)
        elif kind in simulation.measured.asked:
            self._actor.ask(lambda: self._end(step))
        else:
            simulation.compute(self._actor.processor, simulation.service.step_s, lambda: self._end(step))

    def _end(self, step: int) -> None:
        self._left -= 1
        is_last = not self._left  # a step that follows may end at once
        for following in self._questions.then[step]:
            self._num_before[following] -= 1
            if not self._num_before[following]:
                self._step(following)
        if is_last:
            self._done()


class Clock:
    """Simulated time: runs scheduled actions in the order of time, then of scheduling.

    Attributes:
        now_s: seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._scheduled: list[tuple[float, int, Action]] = []
        self._num_scheduled = 0

    def after(self, delay_s: float, action: Action) -> None:
        """Schedule an action ``delay_s`` seconds, at least 0, from now."""
        self._num_scheduled += 1
        heapq.heappush(self._scheduled, (self.now_s + delay_s, self._num_scheduled, action))

    def run(self) -> None:
        """Run all actions, including those that they schedule."""
        while self._scheduled:
            self.now_s, _, action = heapq.heappop(self._scheduled)
            action()


class Slots:
    """Slots that are acquired in the order of the requests.

    Args:
        clock: clock of the simulation.
        capacity: number of slots; ``math.inf``: no request waits.

    Attributes:
        num_busy: number of busy slots.
        max_busy: largest number of slots that were busy at a time.
    """

    def __init__(self, clock: Clock, capacity: float = math.inf) -> None:
        self._clock = clock
        self.capacity = capacity
        self.num_busy = self.max_busy = 0
        self._busy_s = 0.0
        self._changed_s = 0.0
        self._waiting: deque[Action] = deque()

    @property
    def busy_s(self) -> float:
        """Seconds that slots were busy so far, summed over the slots."""
        return self._busy_s + self.num_busy * (self._clock.now_s - self._changed_s)

    def acquire(self, action: Action) -> None:
        """Run an action once a slot is free; the slot is busy until ``release``."""
        if self.num_busy < self.capacity:
            self._count(1)
            action()
        else:
            self._waiting.append(action)

    def release(self) -> None:
        """Free a slot; the request that has waited longest acquires it."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._count(-1)

    def use(self, seconds: float, then: Action) -> None:
        """Hold a slot for some seconds, then run an action."""

        def end() -> None:
            self.release()
            then()

        self.acquire(lambda: self._clock.after(seconds, end))

    def _count(self, change: int) -> None:
        self._busy_s = self.busy_s
        self._changed_s = self._clock.now_s
        self.num_busy += change
        self.max_busy = max(self.max_busy, self.num_busy)
