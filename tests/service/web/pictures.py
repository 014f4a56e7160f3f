"""Takes the pictures in docs/pictures: trains a model on the State of the Union addresses and looks at its page.

    python -m tests.service.web.pictures [--steps 400]

The training runs in this process, as `pkm train` without Ray runs it, on a job of a service that answers here as well.
Needs Debian's chromium and chromium-driver. A run takes some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from selenium.webdriver import ActionChains

from memory_store.opening import in_process_store
from service.job_file import load_job
from service.jobs.database import NewJob
from service.jobs.folder import ServiceFolder
from service.jobs.states import JobState
from tests.service.jobs.running_service import TENANTS, Service, running_service
from tests.service.web.browser import Browser, chromium
from tests.service.web.planted_run import DEMAND
from workers.corpus import prepare_corpus
from workers.job_status import Status, tell_status
from workers.ranks import Ranks
from workers.report import Progress
from workers.training import Trainer

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / "docs" / "pictures"
BYTES_MAX = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    PICTURES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="pkm-pictures-") as folder,
        running_service(Path(folder) / "service") as service,
    ):
        job = train(service, Path(folder), steps)
        with chromium() as browser:
            take(browser, f"http://127.0.0.1:{service.page_port}", job)


def train(service: Service, folder: Path, steps: int) -> str:
    """Train the quickstart model, with fewer tokens a step; the id of its job, which stays one that runs."""
    corpus = folder / "corpus"
    prepare_corpus(
        [ROOT / "examples" / "data" / "sotu.parquet"],
        corpus,
        vocab_size=4096,
        validation_share=0.01,
        test_share=0.01,
    )
    changes = [
        f"data.corpus={corpus}", f"train.steps={steps}", "train.batch_tokens=512", "train.warmup_steps=20",
        f"train.evaluate_every={steps // 8}", "train.evaluation_tokens=2048", f"train.cut_every={steps // 4}",
        "store.carrier=in_process",
    ]  # fmt: skip
    spec = load_job(ROOT / "examples" / "quickstart.yaml", changes).job
    job = service.database.submit(NewJob("ann", "pictures", spec.name, spec.model_dump_json(), DEMAND, 0))
    for state in (JobState.STARTING, JobState.RUNNING):
        service.database.move(job.id, state, "")
    run = ServiceFolder(service.data.parent).run("ann", job.id)
    run.create(spec)
    trainer = Trainer(spec, run, Ranks(), in_process_store(spec.tables(), spec.store.shards))
    began = time.monotonic()
    trainer.train()
    rate = steps * spec.train.batch_tokens / (time.monotonic() - began)
    tell_status(
        run.path, Status(attempt=1, progress=Progress("training", steps, steps, tokens_per_second=rate))
    )
    return job.id


def take(browser: Browser, address: str, job: str) -> None:
    browser.look(1280, 1000)
    browser.open(f"{address}/#token={TENANTS['ann']}")
    browser.find(".jobs a").click()
    browser.find(".map canvas[data-zoom]")
    browser.until(lambda: len(browser.all(".curve:not([hidden])")) == 5)
    save(browser, "job")

    browser.look(1280, 1130, dark=True)
    canvas = browser.find(".map > canvas")
    pointer = ActionChains(browser.driver).move_to_element_with_offset(canvas, -60, 40)
    pointer.perform()
    browser.run(
        "const box = arguments[0].getBoundingClientRect();"
        "for (let turn = 5; turn--;) arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -120, bubbles: true,"
        " cancelable: true, clientX: box.left + box.width / 2 - 60, clientY: box.top + box.height / 2 + 40}))",
        canvas,
    )
    save(browser, "map-zoomed")

    browser.look(375, 812, dark=True)
    browser.run("scrollTo(0, 320)")
    browser.find("button[aria-label='Show the whole map']").click()
    browser.run(
        "document.activeElement.blur(); scrollTo(0, document.querySelector('.map-panel').offsetTop - 12)"
    )
    save(browser, "phone")


def save(browser: Browser, name: str) -> None:
    """A picture of what is seen now."""
    time.sleep(2)  # it moves no more
    path = PICTURES / f"{name}.png"
    browser.driver.save_screenshot(path)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)} has {size} bytes" + (", which is too much" if size > BYTES_MAX else ""))


if __name__ == "__main__":
    main()
