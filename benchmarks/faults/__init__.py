"""Models with known faults and healthy ones, on which recall and false alarms of a whole audit are measured."""
