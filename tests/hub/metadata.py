"""Licences, languages and types that the Hub accepts in a card's front matter, according to its documentation."""

import re
from collections.abc import Iterator, Mapping

# https://huggingface.co/docs/hub/repositories-licenses
LISTED = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-
by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-
nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0
wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0
isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0
postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
LICENSES = frozenset(LISTED.split())
LANGUAGE = re.compile("[a-z]{2,3}|code|multilingual")
TEXTS = ("pretty_name", "license_name", "license_link")


def metadata_errors(data: Mapping[str, object]) -> Iterator[str]:
    """Yield a sentence for each error in a card's front matter."""
    for license in _listed(data.get("license")):
        if license not in LICENSES:
            yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
    for language in _listed(data.get("language")):
        if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
            yield f'"language" must be an ISO 639-1, 639-2 or 639-3 code, or "code" or "multilingual", not {language}'
    for key in TEXTS:
        if not isinstance(data.get(key, ""), str):
            yield f'"{key}" must be a string'
    for key in ("tags", "task_categories", "size_categories", "source_datasets", "configs"):
        if not isinstance(data.get(key, []), list):
            yield f'"{key}" must be an array'


def _listed(value: object) -> list[object]:
    return [] if value is None else value if isinstance(value, list) else [value]
