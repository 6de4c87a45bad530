"""What is hidden, and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.credentials import HIDDEN, credential_faults, redacted, redacted_config

SECRET = "Zq8vT3mLw0pXc5Rb"
VARIABLES = (
  "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "DB_PASSWORD", "PGPASSWORD",
)  # fmt: skip


@pytest.mark.parametrize(
  "text",
  [
    f"https://user:{SECRET}@host/data",
    f"s3://{SECRET}@bucket/key",
    f"/runs/https:/user:{SECRET}@host/data",  # as a path has it
    f"https://host/data?part=1&token={SECRET}",
    f"https://host/data?X-Amz-Signature={SECRET}&part=1",
    f"gs://bucket/data?access_token={SECRET}",
    f"https://host/data?sig={SECRET}",
    f"Authorization: Bearer {SECRET}{SECRET}",
    f"hf_{SECRET}{SECRET}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
  ],
)
def test_a_credential_is_hidden_whatever_stands_around_it(text):
  for around in (text, f"cannot read {text!r}: gone", f'{{"source": "{text}"}}'):
    assert SECRET not in redacted(around, {}) and HIDDEN in redacted(around, {})
  assert redacted(redacted(text, {}), {}) == redacted(text, {})


@pytest.mark.parametrize("name", VARIABLES)
def test_the_value_of_a_secret_variable_is_hidden(name):
  assert redacted(f"no entry for {SECRET}.", {name: SECRET}) == f"no entry for {HIDDEN}."


@pytest.mark.parametrize(
  "text",
  [
    "/data/quickstart/streams/pages",
    "gs://bucket/a@b/shard-00000-of-00002.array_record:17",
    "ssh://git@host/repository",
    "https://host/page?part=3&key_count=2#token",
    "streams.pages.source is 'a:b@c'; tokens: 12",
    "/data/sk-video-1.1.10-py2.py3-none-any.whl",
    "12:30:01 user@host: the token table has 49152 rows",
  ],
)
def test_what_is_no_credential_stays(text):
  assert (
    redacted(text, {"TOKENIZERS_PARALLELISM": "streams.pages", "AWS_PROFILE": "/data/quickstart", "KEY": "a"}) == text
  )


@given(
  st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_a_config_without_credentials_is_as_it_was(config):
  if not credential_faults(config, {}):
    assert redacted_config({"all": config}, {}) == {"all": config}


def test_each_field_with_a_credential_is_named_and_its_value_is_not():
  config = dict(
    streams=dict(a=dict(source=("x", f"https://u:{SECRET}@h")), b=dict(source="x")), frozen=dict(language=SECRET)
  )
  faults = credential_faults(config, {"HF_TOKEN": SECRET})
  assert [fault.split()[0] for fault in faults] == ["streams.a.source", "frozen.language"]
  assert SECRET not in "".join(faults)
  assert SECRET not in str(redacted_config(config, {"HF_TOKEN": SECRET}))
