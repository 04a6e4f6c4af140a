"""A served catalogue version: its artifact on the engine, and what requests need of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from igd_server.catalogues.watch import AnswerWatch

if TYPE_CHECKING:
    from datetime import datetime

    from igd_core.artifact import Artifact
    from igd_core.catalogue.attribute_types import AttributeType
    from igd_core.catalogue.items import Catalogue
    from igd_core.search.identity import ModelIdentity
    from igd_core.search.recommender import Recommender
    from igd_server.catalogues.titles import TitleSearch


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCatalogue:
    """A served version, warm; a request keeps the version that it began with.

    Attributes:
        name: the name it is served under; its artifact may have been built under another.
        recommender: its artifact on the engine.
        titles: title search.
        token_texts: gives the text of each token, for a text and the token ids of its path.
        attributes: types of the attributes that filters can use, by name.
        loaded_at: when it took over.
        watch: counts the model's answers and faults.
        untuned: why the model (under None), or one of its adapters, is not tuned for this catalogue; only those that
            are not.
    """

    name: str
    recommender: Recommender
    titles: TitleSearch
    token_texts: Callable[[str, Sequence[int]], list[str]]
    attributes: Mapping[str, AttributeType]
    loaded_at: datetime
    watch: AnswerWatch = field(default_factory=AnswerWatch)
    untuned: Mapping[str | None, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Its artifact's content hash."""
        return self.recommender.artifact.version

    @property
    def artifact(self) -> Artifact:
        """Its artifact."""
        return self.recommender.artifact

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""
        return self.recommender.artifact.catalogue

    @property
    def model_id(self) -> str:
        """The checkpoint's name."""
        return self.recommender.engine.model_id

    @property
    def model(self) -> ModelIdentity:
        """What its answers depend on, besides the artifact and the request."""
        return self.recommender.engine.identity
