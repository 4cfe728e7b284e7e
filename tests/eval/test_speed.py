"""Figures of speed become rows: each beside its peer or its limit, with where they were measured."""

from eval.speed import feeding_table, generation_table, index_table, scale_table, steps_table


def test_a_step_stands_beside_its_peer() -> None:
    ours = {"case": "bench, batch 32", "milliseconds": 300.0, "peak_bytes": 2e8, "device": "chip", "threads": 2}
    ours |= {"implementation": "ours", "date": "2026-01-01"}
    peer = ours | {"implementation": "open_clip", "milliseconds": 200.0}
    measured = {"rows": [ours, peer], "modalities": ["image", "text"], "outside_arithmetic": 0.25}
    alone = measured | {"rows": [ours]}
    with_peer, without = steps_table({"step_image_text": measured, "step_x": alone}).splitlines()[2:4]
    assert with_peer == (
        "| image text (bench, batch 32): image, text | 300 ms, 200 MB | open_clip 200 ms | 1.5 × | 25 %"
        " | chip, 2 threads, 2026-01-01 |"
    )
    assert without.startswith("| x (bench") and "| — | — |" in without


def test_batches_stand_beside_what_the_cores_could_decode() -> None:
    row = {"what": "batches", "processes": 2, "images_per_second": 900.0}
    table = feeding_table({"rows": [row], "limit_images_per_second": 1800.0, "hardware": "a machine", "commit": "abc"})
    assert "| batches | 2 | 900 | 50 % |" in table and "Measured on: a machine (commit abc)" in table


def test_a_search_stands_beside_reading_its_vectors_once() -> None:
    row = {"vectors": 1000, "queries": 16, "milliseconds": 0.5, "limit_milliseconds": 0.25}
    rates = {"build": 500.0, "limit": 600.0, "again": 5000.0}
    built = {"model": "a run", "side": 256, "images_a_second": rates}
    where = {"device": "chip", "threads": 2, "torch": "2", "date": "2026-01-01"}
    table = index_table({"search": [row], "build": built, **where})
    assert "| 1,000 | 16 | 0.50 ms | 0.25 ms |" in table
    assert "Built by a run: 500 images/s of 256 pixels, 5,000 of those that the index has" in table


def test_a_set_of_cocos_size_has_seconds_and_memory() -> None:
    row = {"layout": "folder", "images": 123287, "seconds_to_first_step": 21.7, "seconds_to_resume": 20.9}
    row["memory_bytes"] = 2**30
    evaluated = {"images": 5000, "captions": 25010, "seconds": 25.0, "seconds_again": 12.0}
    table = scale_table({"rows": [row], "evaluation": evaluated, "hardware": "a machine", "commit": "abc"})
    assert "| folder, 123,287 images | 22 s | 21 s | 1.00 GiB |" in table
    assert "5,000 images and 25,010 captions are evaluated in 25 s" in table


def test_writing_stands_beside_others_and_its_limit() -> None:
    batches = [{"sequences": 8, "tokens_a_second": {"ours": 300.0, "peer": 200.0}}]
    where = {"device": "chip", "threads": 2, "torch": "2", "date": "2026-01-01"}
    limits = {"parameters": 7_600_000, "gigabytes_a_second": 10.0, "touched_bytes_of_a_token": 10**7}
    lengths = [{"length": 64, "kept": 1.5, "anew": 3.0}]
    table = generation_table({"batches": batches, "lengths": lengths, **limits, **where})
    assert "| 8 | 300 | peer 200 (1.5 ×) |" in table and "1,000 tokens/s" in table
    assert "| of 64 |" in table and "| 1.5 ms, 3.0 ms |" in table
