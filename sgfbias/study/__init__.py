"""The machinery that all studies share. To write one, use `from sgfbias import study`.

- `config`: `Config`, a dataclass whose fields declare their bounds.
- `columns`: `Columns`, which collects the variables of a study's dataset.
- `statistics`: estimates with intervals.
- `claim`: claims about the results, and negative controls.
- `plotting`: panels and curves.
- `frame`: `Study` and `study_named`; what surrounds a study's `measure` (precision,
  name, provenance, store).
- `registry`: finds the studies in their folders.
- `execute`: runs a study and writes its results into a folder.
- `store`: reads and writes datasets.
- `report`: writes one HTML page for many studies.
- `bibliography`, `citing`: BibTeX entries, and which of them a result cites.
"""

from sgfbias.study.bibliography import source as source
from sgfbias.study.claim import Claim as Claim
from sgfbias.study.claim import claim as claim
from sgfbias.study.claim import control as control
from sgfbias.study.claim import few_lost as few_lost
from sgfbias.study.claim import not_applicable as not_applicable
from sgfbias.study.columns import Columns as Columns
from sgfbias.study.columns import counted as counted
from sgfbias.study.columns import finals as finals
from sgfbias.study.config import Above as Above
from sgfbias.study.config import AtLeast as AtLeast
from sgfbias.study.config import Between as Between
from sgfbias.study.config import Config as Config
from sgfbias.study.config import Count as Count
from sgfbias.study.config import NotNegative as NotNegative
from sgfbias.study.config import Positive as Positive
from sgfbias.study.config import PositiveOrAuto as PositiveOrAuto
from sgfbias.study.config import Seed as Seed
from sgfbias.study.config import SeededConfig as SeededConfig
from sgfbias.study.frame import InStore as InStore
from sgfbias.study.frame import Log as Log
from sgfbias.study.frame import Resumable as Resumable
from sgfbias.study.frame import Study as Study
from sgfbias.study.frame import study_named as study_named
