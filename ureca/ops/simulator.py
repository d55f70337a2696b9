"""The curation's stages in simulated time: units of images through propose, tree and curate, and the chat model.

What is modelled: workers, the places of the chat model, images in flight, units in flight, the order of an image's
questions, and processors that all of these share. What is not: Ray's own work, the network, and how many units Ray
Data lets wait between two stages; they wait here without bound, so that what waits is the most that there could be.


[from] Simulated time, and places that work waits for."""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ureca.ops.measured import Measured, Questions

Action = Callable[[], None]


class Clock:
    """Does what is due, in the order of time, and of asking where times are equal.

    Attributes:
        now_s: seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._num_asked = 0

    def after(self, delay_s: float, action: Action) -> None:
        """Do something ``delay_s`` seconds, at least 0, from now."""
        self._num_asked += 1
        heapq.heappush(self._due, (self.now_s + delay_s, self._num_asked, action))

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._due:
            self.now_s, _, action = heapq.heappop(self._due)
            action()


class Slots:
    """So many places, taken in the order of asking.

    Args:
        clock: that they go by.
        capacity: places; ``math.inf`` lets nobody wait.

    Attributes:
        num_taken: now.
        most_taken: ever.
    """

    def __init__(self, clock: Clock, capacity: float = math.inf) -> None:
        self._clock = clock
        self.capacity = capacity
        self.num_taken = self.most_taken = 0
        self._busy_s = 0.0
        self._changed_s = 0.0
        self._waiting: deque[Action] = deque()

    @property
    def busy_s(self) -> float:
        """Seconds that places were taken so far, added over the places."""
        return self._busy_s + self.num_taken * (self._clock.now_s - self._changed_s)

    def take(self, action: Action) -> None:
        """Do something once a place is free; it is taken until ``give_back``."""
        if self.num_taken < self.capacity:
            self._count(1)
            action()
        else:
            self._waiting.append(action)

    def give_back(self) -> None:
        """Free a place; who waits longest takes it."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._count(-1)

    def use(self, seconds: float, then: Action) -> None:
        """Take a place for some seconds, and do something afterwards."""

        def end() -> None:
            self.give_back()
            then()

        self.take(lambda: self._clock.after(seconds, end))

    def _count(self, change: int) -> None:
        self._busy_s = self.busy_s
        self._changed_s = self._clock.now_s
        self.num_taken += change
        self.most_taken = max(self.most_taken, self.num_taken)


@dataclass(frozen=True)
class Arrangement:
    """What there is to run on.

    Attributes:
        cpus: processors; each actor and task of Python keeps at most one of them busy.
        mask_actors: actors.
        proposes_on_cpu: False: on GPUs, and its time takes no processor.
        tree_tasks: trees that are planted at a time.
        curate_actors: actors.
        partitions_in_flight: of each curating actor.
        images_in_flight: of each curating actor.
        requests_per_actor: that each may have at the chat model; ``math.inf``: any number.
        engine_slots: answers that the chat model writes at a time, over all its servers.
    """

    cpus: float
    mask_actors: int
    proposes_on_cpu: bool
    tree_tasks: int
    curate_actors: int
    partitions_in_flight: int
    images_in_flight: int
    requests_per_actor: float
    engine_slots: float


@dataclass(frozen=True)
class Service:
    """Seconds that work takes.

    Attributes:
        generate_s: an image.
        tree_s: an image.
        step_s: of a curating actor's processor: to decode an image, to embed its regions, for each question.
        answer_s: of a place of the chat model, a call: some values, each as likely as the next.
        calls_per_question: at least 1.
    """

    generate_s: float
    tree_s: float
    step_s: float
    answer_s: Sequence[float]
    calls_per_question: float = 1.0


@dataclass(frozen=True)
class Moment:
    """How far a simulation is.

    Attributes:
        now_s: seconds since the beginning.
        num_images: that are done.
        busy_s: by part, seconds that its places were taken so far, added over the places.
    """

    now_s: float
    num_images: int
    busy_s: Mapping[str, float]


@dataclass
class Simulated:
    """What happened.

    Attributes:
        places: by part: propose, tree, curate (processors of its actors), engine, cpus, images_in_flight.
        quarter: when a quarter of the images was done.
        three_quarters: when so many were; between both the run is under way.
        end: when the last unit was done.
        curate_s: from when an actor gets a unit to its end, added over the units.
        num_calls: of the chat model.
        most_images_decoded: at a time, over all curating actors.
        most_images_waiting: whose masks were ready at a time, but no actor to curate them.
    """

    slots: Mapping[str, float]
    quarter: Moment
    three_quarters: Moment
    end: Moment
    curate_s: float
    num_calls: int
    most_images_decoded: int
    most_images_waiting: int


def simulate(
    measured: Measured, service: Service, arrangement: Arrangement, partition_sizes: Sequence[int]
) -> Simulated:
    """Run units of such sizes through the stages; images are those that were measured, over and over."""
    return _Pipeline(measured, service, arrangement).run(partition_sizes)


class _Pipeline:
    def __init__(self, measured: Measured, service: Service, arrangement: Arrangement) -> None:
        self.measured, self.service, self.arrangement = measured, service, arrangement
        self.clock = clock = Clock()
        self.rng = random.Random(0)
        self.cpus = Slots(clock, arrangement.cpus)
        self.proposers = Slots(clock, arrangement.mask_actors)
        self.planters = Slots(clock, arrangement.tree_tasks)
        self.engine = Slots(clock, arrangement.engine_slots)
        self.actors = [_Actor(self, number) for number in range(arrangement.curate_actors)]
        self.loads = [(0, number) for number in range(arrangement.curate_actors)]
        self.decoded = Slots(clock)
        self.waiting = Slots(clock)
        self.queue: deque[tuple[int, int]] = deque()
        self.num_calls = self.num_done = 0
        self.curate_s = 0.0
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
                "curate": arrangement.curate_actors,
                "engine": arrangement.engine_slots,
                "cpus": arrangement.cpus,
                "images_in_flight": arrangement.curate_actors * arrangement.images_in_flight,
            },
            quarter=self.moments[0],
            three_quarters=self.moments[-1],
            end=self._moment(),
            curate_s=self.curate_s,
            num_calls=self.num_calls,
            most_images_decoded=self.decoded.most_taken,
            most_images_waiting=self.waiting.most_taken,
        )

    def image_done(self) -> None:
        """Count an image."""
        self.num_done += 1
        for _ in range(self.look_at.count(self.num_done)):
            self.moments.append(self._moment())

    def _moment(self) -> Moment:
        busy_s = {
            "masks": self.proposers.busy_s,
            "tree": self.planters.busy_s,
            "curate": sum(actor.process.busy_s for actor in self.actors),
            "engine": self.engine.busy_s,
            "cpus": self.cpus.busy_s,
            "images_in_flight": self.decoded.busy_s,
        }
        return Moment(self.clock.now_s, self.num_done, busy_s)

    def compute(self, worker: Slots, seconds: float, then: Action) -> None:
        """A worker's work on a processor."""

        def end() -> None:
            worker.give_back()
            then()

        worker.take(lambda: self.cpus.use(seconds, end))

    def _generate(self, first: int, size: int) -> None:
        def build() -> None:
            self.compute(self.planters, size * self.service.tree_s, arrive)

        def arrive() -> None:
            for _ in range(size):
                self.waiting.take(lambda: None)
            self.queue.append((first, size))
            self.hand_out()

        seconds = size * self.service.generate_s
        if self.arrangement.proposes_on_cpu:
            self.compute(self.proposers, seconds, build)
        else:
            self.proposers.use(seconds, build)

    def hand_out(self) -> None:
        """Give units to the actors that have least to do, while they take any."""
        while self.queue and (actor := self._least_loaded()).num_partitions < self.arrangement.partitions_in_flight:
            first, size = self.queue.popleft()
            for _ in range(size):
                self.waiting.give_back()
            actor.curate(first, size)

    def _least_loaded(self) -> "_Actor":
        """The actor with the fewest units; each has left its number of units in a heap whenever that has changed."""
        while True:
            num_partitions, number = self.loads[0]
            if self.actors[number].num_partitions == num_partitions:
                return self.actors[number]
            heapq.heappop(self.loads)


class _Actor:
    """A curating actor: one processor, so many images in flight, so many requests at the chat model."""

    def __init__(self, pipeline: _Pipeline, number: int) -> None:
        arrangement = pipeline.arrangement
        self.pipeline = pipeline
        self.number = number
        self.num_partitions = 0
        self.process = Slots(pipeline.clock, 1)
        self.images = Slots(pipeline.clock, arrangement.images_in_flight)
        self.requests = Slots(pipeline.clock, arrangement.requests_per_actor)

    def curate(self, first: int, size: int) -> None:
        began_s, left = self.pipeline.clock.now_s, size
        self._count(1)

        def image_done() -> None:
            nonlocal left
            self.pipeline.decoded.give_back()
            self.pipeline.image_done()
            self.images.give_back()
            left -= 1
            if not left:
                self._count(-1)
                self.pipeline.curate_s += self.pipeline.clock.now_s - began_s
                self.pipeline.hand_out()

        images = self.pipeline.measured.images

        def begin(number: int) -> None:
            self.pipeline.decoded.take(lambda: _Image(self, images[number % len(images)], image_done).begin())

        for number in range(first, first + size):
            self.images.take(lambda number=number: begin(number))  # type: ignore[misc]

    def _count(self, change: int) -> None:
        self.num_partitions += change
        heapq.heappush(self.pipeline.loads, (self.num_partitions, self.number))

    def ask(self, then: Action) -> None:
        """One question, with the answers that could not be used."""
        service, rng = self.pipeline.service, self.pipeline.rng
        again, may_repeat = divmod(service.calls_per_question - 1, 1)
        _Question(self, 1 + int(again) + (rng.random() < may_repeat), then).render()


class _Question:
    """A question on its way, as often as it is asked.

    An object and not closures that refer to each other: there are millions, and only the collector frees what refers
    to itself, which takes longer the more is under way.
    """

    __slots__ = ("_actor", "_num_calls", "_then")

    def __init__(self, actor: _Actor, num_calls: int, then: Action) -> None:
        self._actor, self._num_calls, self._then = actor, num_calls, then

    def render(self) -> None:
        """The actor's own work on it."""
        actor = self._actor
        actor.pipeline.compute(actor.process, actor.pipeline.service.step_s, self._wait)

    def _wait(self) -> None:
        self._actor.requests.take(self._send)

    def _send(self) -> None:
        pipeline = self._actor.pipeline
        pipeline.num_calls += 1
        pipeline.engine.use(pipeline.rng.choice(pipeline.service.answer_s), self._answered)

    def _answered(self) -> None:
        self._actor.requests.give_back()
        self._num_calls -= 1
        if self._num_calls:
            self.render()
        else:
            self._then()


class _Image:
    """One image on its way through its questions."""

    def __init__(self, actor: _Actor, questions: Questions, done: Action) -> None:
        self._actor, self._questions, self._done = actor, questions, done
        self._num_before = list(questions.num_before)
        self._left = len(questions.kinds)

    def begin(self) -> None:
        self._step(0)

    def _step(self, step: int) -> None:
        kind = self._questions.kinds[step]
        pipeline = self._actor.pipeline
        if kind == "wait":
            self._end(step)
        elif kind in pipeline.measured.asked:
            self._actor.ask(lambda: self._end(step))
        else:
            pipeline.compute(self._actor.process, pipeline.service.step_s, lambda: self._end(step))

    def _end(self, step: int) -> None:
        self._left -= 1
        is_last = not self._left  # a step that follows may end at once
        for following in self._questions.then[step]:
            self._num_before[following] -= 1
            if not self._num_before[following]:
                self._step(following)
        if is_last:
            self._done()
