"""What is measured, one file each."""

from bench.subjects.base import Entry, Outcome, Subject
from bench.subjects.classify import Classify
from bench.subjects.inference import Inference
from bench.subjects.memory import Memory
from bench.subjects.sequence import Sequence
from bench.subjects.step import Step
from bench.subjects.train import Train

__all__ = ["SUBJECTS", "Entry", "Outcome", "Subject"]

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (Step(), Sequence(), Train(), Classify(), Inference(), Memory())
}
