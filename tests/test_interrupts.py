import os
import signal
import threading

import pytest

from iapo_jax.core import interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number, capfd):
  before = signal.getsignal(number)
  with interrupts.deferred() as request:
    assert request.number == 0
    os.kill(os.getpid(), number)
    assert request.number == number
    # The next one acts as it always did.
    assert signal.getsignal(number) is before
  assert signal.getsignal(number) is before
  name = signal.Signals(number).name
  assert f"{name}: finishing the step, then saving" in capfd.readouterr().err


def test_the_second_acts_at_once():
  with pytest.raises(KeyboardInterrupt), interrupts.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_signal_stays_ignored():
  before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
  try:
    with interrupts.deferred() as request:
      os.kill(os.getpid(), signal.SIGTERM)
    assert request.number == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_thread_has_no_signals():
  seen = []

  def work():
    with interrupts.deferred() as request:
      seen.append(request.number)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [0]
