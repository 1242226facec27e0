import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from affine import Affine
from eolearn.core import EOPatch
from fs_s3fs import S3FS
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from rasterio.errors import NotGeoreferencedWarning
from sentinelhub import CRS, BBox

from localhub.seaweed import SeaweedFS
from tasks import arrayfiles
from tasks.conversion import (
    ConversionRecord,
    FeatureMapping,
    FeatureRule,
    PatchOptions,
    TileFiles,
    check_bands,
    check_frames,
    check_mapping,
    convert,
    convert_tile,
    decode,
    default_mapping,
    is_converted,
    land_cover_mapping,
    planes,
    with_bands,
)
from tasks.errors import DeliveryError, InvalidInput, TileError
from tasks.evalscript import Output
from tasks.storage import Storage
from tests.tasks.delivery_files import (
    BANDS,
    INDICES,
    MAPPING,
    PROVENANCE,
    TILE,
    dates,
    deliver,
    random_outputs,
    write_raster,
)

FILES = LocalFileSystem()
COUNT = 4
NPY = PatchOptions()
ZARR = PatchOptions(file_format="zarr")


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    return random_outputs(TILE, COUNT)


@pytest.fixture
def delivered(tmp_path: Path, outputs: dict[str, np.ndarray]) -> TileFiles:
    """A delivered tile on the local disk."""
    return deliver(tmp_path / "tile", outputs, TILE, dates(COUNT))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Where the EOPatch goes."""
    return str(tmp_path / "run" / "eopatches" / "eopatch_33TVM_4_5")


def run(
    delivered: TileFiles, folder: str, mapping: FeatureMapping = MAPPING, options: PatchOptions = NPY
) -> ConversionRecord:
    return convert_tile(TILE, delivered, FILES, FILES, folder, mapping=mapping, options=options, provenance=PROVENANCE)


def assert_land_cover(patch: EOPatch, outputs: dict[str, np.ndarray]) -> None:
    """Compare with the features computed pixel by pixel from the definitions."""
    quality = outputs["QUALITY"]
    bands = np.zeros((COUNT, TILE.height, TILE.width, len(BANDS)), np.float32)
    for band, name in enumerate(BANDS):
        for date, row, column in np.argwhere(quality > 0):
            bands[date, row, column, band] = outputs[name][date, row, column] * 1e-4
    np.testing.assert_array_equal(patch.data["BANDS"], bands)
    for name in INDICES:
        valid = (quality > 0) & (outputs[name] != 65_535)
        index = np.where(valid, outputs[name] * 1e-4 - 1, 0).astype(np.float32)
        np.testing.assert_array_equal(patch.data[name], index[..., np.newaxis])
    np.testing.assert_array_equal(patch.mask["QUALITY"][..., 0], quality)
    np.testing.assert_array_equal(patch.mask["IS_DATA"][..., 0], quality > 0)
    np.testing.assert_array_equal(patch.mask["IS_VALID"][..., 0], quality == 1)
    np.testing.assert_array_equal(patch.mask_timeless["VALID_COUNT"][..., 0], outputs["VALID_COUNT"][0])
    assert {
        f"{kind.value}/{name}": str(patch[kind, name].dtype) for kind, name in patch.get_features() if kind.ndim()
    } == {
        "data/BANDS": "float32",
        "data/NDVI": "float32",
        "data/NDWI": "float32",
        "data/NDBI": "float32",
        "mask/QUALITY": "uint8",
        "mask/IS_DATA": "bool",
        "mask/IS_VALID": "bool",
        "mask_timeless/VALID_COUNT": "int64",
    }
    assert patch.bbox == BBox(TILE.bounds, CRS(TILE.epsg))
    assert patch.timestamps == dates(COUNT)


# ---- what comes out ----


@pytest.mark.parametrize("options", [NPY, ZARR])
def test_eolearn_opens_the_patch_and_every_array_is_what_numpy_computes(
    delivered: TileFiles, outputs: dict[str, np.ndarray], folder: str, options: PatchOptions
) -> None:
    record = run(delivered, folder, options=options)

    assert_land_cover(EOPatch.load(folder), outputs)
    assert (record.tile, record.outcome, record.dates) == (TILE.name, "converted", COUNT)
    sources = [*delivered.outputs.values(), str(delivered.userdata)]
    assert record.bytes_read == sum(Path(path).stat().st_size for path in sources)
    assert record.bytes_written == sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "profile",
    [
        {"interleave": "band"},
        {"tiled": False, "blockxsize": None, "blockysize": None},
        {"compress": None, "predictor": 1},
    ],
)
def test_every_layout_of_the_files_gives_the_same_patch(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str, profile: dict[str, Any]
) -> None:
    run(deliver(tmp_path / "tile", outputs, TILE, dates(COUNT), **profile), folder)

    assert_land_cover(EOPatch.load(folder), outputs)


@pytest.mark.parametrize("options", [NPY, ZARR])
def test_a_tile_that_is_too_large_for_memory_gives_the_same_patch(
    monkeypatch: pytest.MonkeyPatch,
    delivered: TileFiles,
    outputs: dict[str, np.ndarray],
    folder: str,
    options: PatchOptions,
) -> None:
    monkeypatch.setattr(planes, "LARGEST_IN_MEMORY", 1)
    monkeypatch.setattr(arrayfiles, "MEMBER_BYTES", 5000)

    run(delivered, folder, options=options)

    assert_land_cover(EOPatch.load(folder), outputs)


@pytest.mark.parametrize("options", [NPY, ZARR])
def test_tiles_that_share_threads_and_memory_with_others_and_with_one_that_fails_are_their_own(
    tmp_path: Path, options: PatchOptions
) -> None:
    numbers = [random_outputs(TILE, COUNT, seed) for seed in range(8)]
    tiles = [deliver(tmp_path / f"tile{seed}", each, TILE, dates(COUNT)) for seed, each in enumerate(numbers)]
    damaged = Path(tiles[2].outputs["NDWI"])
    damaged.write_bytes(damaged.read_bytes()[:1000])

    with ThreadPoolExecutor(3) as threads:
        folders = [str(tmp_path / f"run/eopatches/{seed}") for seed in range(8)]
        work = [threads.submit(run, tile, folder, options=options) for tile, folder in zip(tiles, folders, strict=True)]
    with pytest.raises(DeliveryError, match=r"NDWI\.tif"):
        work.pop(2).result()

    for future in work:
        future.result()
    for seed in (0, 1, 3, 4, 5, 6, 7):
        assert_land_cover(EOPatch.load(folders[seed]), numbers[seed])


def test_timestamps_are_sorted_with_their_arrays_whatever_their_order_in_the_files(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str
) -> None:
    shuffle = [2, 0, 3, 1]
    shuffled = {name: numbers[shuffle] if len(numbers) == COUNT else numbers for name, numbers in outputs.items()}
    times = [dates(COUNT)[position] for position in shuffle]

    run(deliver(tmp_path / "tile", shuffled, TILE, times), folder)

    assert_land_cover(EOPatch.load(folder), outputs)


def test_timestamps_are_kept_in_utc_without_a_zone_as_eolearn_does(delivered: TileFiles, folder: str) -> None:
    times = ["2019-01-01T02:00:00+02:00", "2019-01-16T00:00:00Z", "2019-01-31T00:00:00.000Z", "2019-02-15"]
    Path(str(delivered.userdata)).write_text(json.dumps({"timestamps": times}))

    run(delivered, folder)

    assert EOPatch.load(folder).timestamps == dates(COUNT)


def test_bands_may_be_stored_as_delivered(delivered: TileFiles, outputs: dict[str, np.ndarray], folder: str) -> None:
    run(delivered, folder, land_cover_mapping(BANDS, INDICES, "uint16"))

    bands = EOPatch.load(folder).data["BANDS"]
    assert bands.dtype == np.uint16
    np.testing.assert_array_equal(bands, np.stack([outputs[band] for band in BANDS], axis=-1))


def test_values_without_data_are_zero_even_where_the_script_left_numbers(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str
) -> None:
    outputs["B02"][:] = 1234
    run(deliver(tmp_path / "tile", outputs, TILE, dates(COUNT)), folder)

    patch = EOPatch.load(folder)
    no_data = ~patch.mask["IS_DATA"][..., 0]
    assert no_data.any()
    assert all((patch.data[name][no_data] == 0).all() for name in ("BANDS", *INDICES))


def test_the_marker_says_where_everything_came_from_and_the_folder_holds_nothing_but_the_patch(
    delivered: TileFiles, folder: str
) -> None:
    run(delivered, folder)

    marker = EOPatch.load(folder).meta_info["BATCH"]
    assert (marker["request_id"], marker["tile"], marker["fingerprint"]) == ("request-1", TILE.name, "print-1")
    assert (marker["evalscript_sha256"], marker["mapping_sha256"]) == ("0" * 64, MAPPING.sha256)
    assert set(marker["sources"]) == {*MAPPING.outputs, "userdata"}
    assert marker["sources"]["B02"]["size"] == Path(delivered.outputs["B02"]).stat().st_size
    names = {path.name for path in Path(folder).iterdir()}
    assert names == {"bbox.geojson", "timestamps.json", "data", "mask", "mask_timeless", "meta_info"}
    assert [path.name for path in Path(folder).parents[1].iterdir()] == ["eopatches"]


# ---- samples, which decide the price ----


@pytest.mark.parametrize(
    ("told", "samples"), [({"acquisitions": ["2019-01-01", "2019-01-06"]}, 2), ({}, None), ({"acquisitions": 2}, None)]
)
def test_the_samples_that_the_script_tells_are_kept_in_record_and_marker(
    delivered: TileFiles, folder: str, told: dict[str, Any], samples: int | None
) -> None:
    path = Path(str(delivered.userdata))
    path.write_text(json.dumps(json.loads(path.read_text()) | told))

    assert run(delivered, folder).samples == samples
    verdict = is_converted(FILES, folder, TILE.name, MAPPING, "npy.gz", PROVENANCE)
    assert verdict.marker["samples"] == samples


@pytest.mark.parametrize(("content", "samples"), [(None, None), ("null", None), ('{"acquisitions": []}', 0)])
def test_a_script_without_dates_may_tell_its_samples_but_need_not(
    tmp_path: Path, folder: str, content: str | None, samples: int | None
) -> None:
    mapping = default_mapping([("RGB", 3, "FLOAT32")], temporal=False)
    colours = np.ones((3, TILE.height, TILE.width), np.float32)
    delivered = deliver(tmp_path / "tile", {"RGB": colours}, TILE, [], predictor=3)
    userdata = Path(str(delivered.userdata))
    userdata.write_text(content) if content is not None else userdata.unlink()

    assert run(delivered, folder, mapping).samples == samples


def test_what_was_not_processed_has_no_samples(folder: str) -> None:
    empty = TileFiles({}, None, tuple(dates(COUNT)))
    assert run(empty, folder, options=PatchOptions(keep_empty=True)).samples == 0


# ---- no data ----


def test_a_tile_without_valid_pixels_gives_a_record_and_no_patch(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str
) -> None:
    outputs["QUALITY"][:] = 0
    delivered = deliver(tmp_path / "tile", outputs, TILE, dates(COUNT))
    run(delivered, folder, options=PatchOptions(keep_empty=True))

    record = run(delivered, folder)

    assert (record.outcome, record.bytes_written) == ("no data", 0)
    assert not Path(folder).exists()


def test_an_empty_patch_needs_dates(folder: str) -> None:
    with pytest.raises(TileError, match="has no data and no dates for an empty EOPatch; switch keep_empty off"):
        run(TileFiles({}, None), folder, options=PatchOptions(keep_empty=True))


@pytest.mark.parametrize("case", ["all pixels invalid", "no dates in userdata", "nothing delivered"])
def test_an_empty_patch_of_the_usual_shape_and_dates_is_written_when_asked_for(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str, case: str
) -> None:
    outputs["QUALITY"][:] = 0
    times = [] if case == "no dates in userdata" else dates(COUNT)
    delivered = deliver(tmp_path / "tile", outputs, TILE, times)
    if case == "nothing delivered":
        delivered = TileFiles({}, None)
    delivered = dataclasses.replace(delivered, dates=tuple(date.replace(tzinfo=UTC) for date in dates(COUNT)))

    record = run(delivered, folder, options=PatchOptions(keep_empty=True))

    patch = EOPatch.load(folder)
    assert record.outcome == "no data"
    assert patch.timestamps == dates(COUNT)
    assert patch.data["BANDS"].shape == (COUNT, TILE.height, TILE.width, 6)
    assert patch.mask_timeless["VALID_COUNT"].shape == (TILE.height, TILE.width, 1)
    assert not any(patch[kind, name].any() for kind, name in patch.get_features() if kind.ndim())
    assert is_converted(FILES, folder, TILE.name, MAPPING, "npy.gz", PROVENANCE)


# ---- bad files ----


def truncate(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


SHIFTED = {"transform": TILE.transform * Affine.translation(0.5, 0)}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_fails_the_tile_and_leaves_no_patch(delivered: TileFiles, folder: str, share: float) -> None:
    truncate(Path(delivered.outputs["B08"]), share)

    with pytest.raises(TileError, match=r"33TVM_4_5: .*B08\.tif is not a readable GeoTIFF .*truncated or corrupt"):
        run(delivered, folder)
    assert not Path(folder).exists()


def test_a_single_flipped_bit_fails_the_tile(delivered: TileFiles, folder: str) -> None:
    path = Path(delivered.outputs["B08"])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    path.write_bytes(content)

    with pytest.raises(TileError, match=r"B08\.tif is not a readable GeoTIFF"):
        run(delivered, folder)


def test_a_missing_file_is_named(delivered: TileFiles, folder: str) -> None:
    Path(delivered.outputs["NDVI"]).unlink()

    with pytest.raises(TileError, match=r"NDVI\.tif is missing"):
        run(delivered, folder)
    assert not Path(folder).exists()


def test_an_output_that_was_not_delivered_is_named(delivered: TileFiles, folder: str) -> None:
    kept = {output: path for output, path in delivered.outputs.items() if output != "B11"}

    with pytest.raises(TileError, match="output B11 was not delivered; B02, B03"):
        run(dataclasses.replace(delivered, outputs=kept), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda numbers: (numbers[:, :-1], {}), "has 32 x 23 pixels .columns x rows., expected 32 x 24"),
        (lambda numbers: (numbers[:-1], {}), "has 3 bands, expected 4, one per date"),
        (lambda numbers: (numbers.astype(np.float32), {"predictor": 3}), "holds float32, expected uint16"),
        (lambda numbers: (numbers, {"crs": "EPSG:32634"}), "is in EPSG:32634, expected EPSG:32633"),
        (lambda numbers: (numbers, SHIFTED), r"has bounds \(440010.0, .*expected \(440000.0, "),
    ],
)
def test_a_file_that_is_not_the_tiles_is_named_with_what_was_expected_and_what_came(
    delivered: TileFiles, outputs: dict[str, np.ndarray], folder: str, change: Any, message: str
) -> None:
    numbers, profile = change(outputs["B04"])
    write_raster(Path(delivered.outputs["B04"]), numbers, TILE, **profile)

    with pytest.raises(TileError, match=r"B04\.tif " + message):
        run(delivered, folder)
    assert not Path(folder).exists()


def test_the_quality_must_be_of_the_type_that_the_mapping_says(
    delivered: TileFiles, outputs: dict[str, np.ndarray], folder: str
) -> None:
    write_raster(Path(delivered.outputs["QUALITY"]), outputs["QUALITY"].astype(np.uint16), TILE)

    with pytest.raises(TileError, match=r"QUALITY\.tif holds uint16, expected uint8"):
        run(delivered, folder)


def test_a_file_without_georeference_is_refused(
    delivered: TileFiles, outputs: dict[str, np.ndarray], folder: str
) -> None:
    with pytest.warns(NotGeoreferencedWarning):
        write_raster(Path(delivered.outputs["B04"]), outputs["B04"], TILE, crs=None, transform=None)

    with pytest.warns(NotGeoreferencedWarning), pytest.raises(TileError, match="is in no CRS, expected EPSG:32633"):
        run(delivered, folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"timestamps": 3}', '{"timestamps": ["yesterday"]}'])
def test_userdata_that_gives_no_dates_fails_the_tile(delivered: TileFiles, folder: str, content: str) -> None:
    Path(str(delivered.userdata)).write_text(content)

    with pytest.raises(TileError, match=r'userdata\.json has no readable list "timestamps"'):
        run(delivered, folder)


@pytest.mark.parametrize("quality", [True, False])
def test_data_whose_dates_the_script_does_not_tell_are_not_taken_for_no_data(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str, quality: bool
) -> None:
    rule = FeatureRule(feature_type="data", name="B02", outputs=("B02",), dtype="uint16")
    mapping = FeatureMapping(features=(rule,), quality_output="QUALITY" if quality else None)
    delivered = deliver(tmp_path / "tile", outputs, TILE, [])

    name = "QUALITY" if quality else "B02"
    with pytest.raises(
        TileError, match=rf"{name}\.tif has data in its 4 bands, but .*userdata\.json names no dates; let"
    ):
        run(delivered, folder, mapping)


@pytest.mark.parametrize("number", [0, -9999, np.nan])
def test_a_script_that_saw_no_scene_gives_no_dates_and_each_pixel_the_same(
    tmp_path: Path, folder: str, number: float
) -> None:
    files = {"X": np.full((2, TILE.height, TILE.width), number, np.float32)}
    rule = FeatureRule(feature_type="data", name="X", outputs=("X",))
    delivered = deliver(tmp_path / "tile", files, TILE, [], predictor=1)

    assert run(delivered, folder, FeatureMapping(features=(rule,), quality_output=None)).outcome == "no data"


def test_dates_that_differ_are_named(delivered: TileFiles, folder: str) -> None:
    others = [*dates(COUNT)[:-1], *(date.replace(month=3) for date in dates(1) * 2)]

    with pytest.raises(
        TileError,
        match=r"names 4 dates from .*, expected 5 dates from .*; not expected: 2019-02-15T00:00:00; "
        r"missing: 2019-03-01T00:00:00, 2019-03-01T00:00:00",
    ):
        run(dataclasses.replace(delivered, dates=tuple(others)), folder)


def test_dates_other_than_the_other_tiles_fail_the_tile(delivered: TileFiles, folder: str) -> None:
    expected = dataclasses.replace(delivered, dates=tuple(dates(COUNT + 1)))

    with pytest.raises(
        TileError, match="names 4 dates from 2019-01-01T00:00:00 to 2019-02-15T00:00:00, expected 5 dates from"
    ):
        run(expected, folder)


@pytest.mark.parametrize("extra", [dates(COUNT + 1)[-1], dates(COUNT)[0]], ids=["another", "one twice"])
def test_a_date_too_many_fails_the_tile(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str, extra: datetime
) -> None:
    more = {name: np.append(numbers, numbers[:1], axis=0) for name, numbers in outputs.items()}
    delivered = deliver(tmp_path / "more", more, TILE, [*dates(COUNT), extra])

    with pytest.raises(TileError, match=f"names {COUNT + 1} dates from .*, expected {COUNT} dates from"):
        run(dataclasses.replace(delivered, dates=tuple(dates(COUNT))), folder)


# ---- commit ----


def test_a_converted_tile_is_recognised_by_its_marker_and_only_while_nothing_changed(
    delivered: TileFiles, folder: str
) -> None:
    assert "does not exist" in is_converted(FILES, folder, TILE.name, MAPPING, "npy.gz", PROVENANCE).reason

    run(delivered, folder)

    repaired = dataclasses.replace(PROVENANCE, request_id="request-2")
    assert is_converted(FILES, folder, TILE.name, MAPPING, "npy.gz", PROVENANCE)
    assert is_converted(FILES, folder, TILE.name, MAPPING, "npy.gz", repaired)
    for changed in (
        is_converted(FILES, folder, TILE.name, MAPPING, "zarr", PROVENANCE),
        is_converted(FILES, folder, TILE.name, land_cover_mapping(BANDS, ()), "npy.gz", PROVENANCE),
        is_converted(
            FILES, folder, TILE.name, MAPPING, "npy.gz", dataclasses.replace(PROVENANCE, fingerprint="print-2")
        ),
    ):
        assert not changed
        assert "META_INFO/BATCH says" in changed.reason


def test_a_patch_without_marker_is_replaced_with_all_that_is_in_it(
    delivered: TileFiles, outputs: dict[str, np.ndarray], folder: str
) -> None:
    run(delivered, folder, options=ZARR)
    (Path(folder) / "meta_info" / "BATCH.json.gz").unlink()
    assert not is_converted(FILES, folder, TILE.name, MAPPING, "zarr", PROVENANCE)

    run(delivered, folder)

    assert_land_cover(EOPatch.load(folder), outputs)
    assert not list(Path(folder).rglob("*.zarr"))


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00", b"no gzip"])
def test_a_damaged_marker_does_not_count(delivered: TileFiles, folder: str, content: bytes) -> None:
    run(delivered, folder)
    (Path(folder) / "meta_info" / "BATCH.json.gz").write_bytes(content)

    verdict = is_converted(FILES, folder, TILE.name, MAPPING, "npy.gz", PROVENANCE)
    assert not verdict
    assert "is not readable" in verdict.reason


# ---- S3 ----


@pytest.mark.parametrize("options", [NPY, ZARR])
def test_source_and_target_may_lie_on_an_s3_server_that_is_not_aws(
    tmp_path: Path,
    delivered: TileFiles,
    outputs: dict[str, np.ndarray],
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    options: PatchOptions,
) -> None:
    s3_files.put(str(tmp_path / "tile"), f"{bucket}/tiles/", recursive=True)
    on_s3 = TileFiles(
        {output: f"s3://{bucket}/tiles/tile/{output}.tif" for output in delivered.outputs},
        f"s3://{bucket}/tiles/tile/userdata.json",
    )
    folder = f"{bucket}/run/eopatches/eopatch_33TVM_4_5"
    s3_files.pipe_file(f"{folder}/data/LEFTOVER.npy.gz", b"half a patch")

    convert_tile(TILE, on_s3, s3_files, s3_files, folder, mapping=MAPPING, options=options, provenance=PROVENANCE)

    s3_files.get(folder, str(tmp_path / "copy"), recursive=True)
    copy = EOPatch.load(str(tmp_path / "copy"))
    assert_land_cover(copy, outputs)
    assert "LEFTOVER" not in copy.data
    assert copy.meta_info["BATCH"]["sources"]["B02"]["version"] == s3_files.info(on_s3.outputs["B02"])["ETag"].strip(
        '"'
    )
    assert is_converted(s3_files, folder, TILE.name, MAPPING, options.file_format, PROVENANCE)


def test_eolearn_opens_the_patch_where_it_lies_on_s3(
    delivered: TileFiles, outputs: dict[str, np.ndarray], s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    folder = f"{bucket}/run/eopatches/eopatch_33TVM_4_5"
    convert_tile(TILE, delivered, FILES, s3_files, folder, mapping=MAPPING, options=NPY, provenance=PROVENANCE)

    remote = S3FS(
        bucket,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        endpoint_url=s3.endpoint_url,
        strict=False,
    )
    assert_land_cover(EOPatch.load("run/eopatches/eopatch_33TVM_4_5", filesystem=remote), outputs)


def test_eolearn_opens_a_zarr_patch_on_s3_when_the_environment_names_the_endpoint(
    delivered: TileFiles,
    outputs: dict[str, np.ndarray],
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = f"{bucket}/run/eopatches/eopatch_33TVM_4_5"
    convert_tile(TILE, delivered, FILES, s3_files, folder, mapping=MAPPING, options=ZARR, provenance=PROVENANCE)

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    remote = S3FS(bucket, aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key, strict=False)
    assert_land_cover(EOPatch.load("run/eopatches/eopatch_33TVM_4_5", filesystem=remote), outputs)


def test_a_missing_object_fails_the_tile(
    delivered: TileFiles, s3_files: s3fs.S3FileSystem, bucket: str, folder: str
) -> None:
    on_s3 = TileFiles({output: f"{bucket}/{output}.tif" for output in delivered.outputs}, None, tuple(dates(COUNT)))

    with pytest.raises(TileError, match=r"QUALITY\.tif is missing"):
        convert_tile(TILE, on_s3, s3_files, FILES, folder, mapping=MAPPING, options=NPY, provenance=PROVENANCE)


def test_the_task_converts_from_urls(
    tmp_path: Path,
    delivered: TileFiles,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    outputs: dict[str, np.ndarray],
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    s3_files.put(str(tmp_path / "tile"), f"{bucket}/tiles/", recursive=True)
    on_s3 = TileFiles(
        {output: f"s3://{bucket}/tiles/tile/{output}.tif" for output in delivered.outputs},
        f"s3://{bucket}/tiles/tile/userdata.json",
    )
    storage = Storage(tiles_url=f"s3://{bucket}/tiles", destination=folder, endpoint_url=s3.endpoint_url)

    convert.fn(TILE, on_s3, storage, folder, mapping=MAPPING, options=NPY, provenance=PROVENANCE)

    assert_land_cover(EOPatch.load(folder), outputs)


# ---- decoding ----


@given(hnp.arrays(np.float64, 20, elements=st.floats(-1, 1)))
def test_an_index_survives_encoding_within_half_a_step(index: np.ndarray) -> None:
    encoded = np.floor(10_000 * (index + 1) + 0.5).astype(np.uint16)  # as the evalscript rounds
    rule = next(rule for rule in MAPPING.features if rule.name == "NDVI")

    decoded = decode(encoded, rule)

    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, index, atol=0.5e-4 + 1e-7, rtol=0)


@given(hnp.arrays(np.uint16, 20))
def test_every_reflectance_survives_decoding_and_encoding(numbers: np.ndarray) -> None:
    rule = next(rule for rule in MAPPING.features if rule.name == "BANDS")

    decoded = decode(numbers, rule)

    np.testing.assert_array_equal(np.rint(decoded.astype(np.float64) * 10_000).astype(np.uint16), numbers)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize("scale", [1e-4, -1e-4, 0.01, 1 / 255, 3e-4, 0.5, 2.0, 1e-12])
def test_numbers_are_scaled_in_double_precision_whichever_way_is_fast(dtype: str, scale: float) -> None:
    numbers = np.arange(max(np.iinfo(dtype).min, -(2**17)), min(np.iinfo(dtype).max, 2**17) + 1).astype(dtype)
    rule = FeatureRule(feature_type="data", name="X", outputs=("X",), scale=scale)

    decoded = decode(numbers, rule)

    assert decoded.tobytes() == (numbers.astype(np.float64) * scale).astype(np.float32).tobytes()


@pytest.mark.parametrize("nodata", [0, 1, 255])
def test_numbers_that_equal_a_files_nodata_tag_are_what_the_mapping_says(
    tmp_path: Path, outputs: dict[str, np.ndarray], folder: str, nodata: int
) -> None:
    run(deliver(tmp_path / "tagged", outputs, TILE, dates(COUNT), nodata=nodata), folder)

    assert_land_cover(EOPatch.load(folder), outputs)


def test_integers_take_an_offset_and_are_rounded_to_their_type() -> None:
    rule = FeatureRule(feature_type="data", name="X", outputs=("X",), scale=0.5, offset=-1000, no_data=7, dtype="int16")

    decoded = decode(np.array([0, 7, 2000, 2001, 2003, 65_535], np.uint16), rule)

    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, [-1000, 0, 0, 0, 2, 31_768])  # halves to even


def test_not_a_number_becomes_no_data() -> None:
    rule = FeatureRule(feature_type="data", name="X", outputs=("X",))

    np.testing.assert_array_equal(decode(np.array([1.5, np.nan, np.inf], np.float32), rule), [1.5, 0, 0])


@pytest.mark.parametrize(("numbers", "dtype"), [([300], "uint8"), ([-1], "uint16"), ([40_000.4], "int16")])
def test_values_that_do_not_fit_their_type_fail_the_tile(
    tmp_path: Path, folder: str, numbers: list[float], dtype: Any
) -> None:
    raster = np.full((1, TILE.height, TILE.width), numbers[0], np.float32)
    rule = FeatureRule(feature_type="data_timeless", name="X", outputs=("X",), dtype=dtype)
    mapping = FeatureMapping(features=(rule,), quality_output=None)

    with pytest.raises(TileError, match=f"feature X: values from .* do not fit {dtype}"):
        run(deliver(tmp_path / "tile", {"X": raster}, TILE, [], predictor=3), folder, mapping)


def test_values_without_data_need_not_fit_the_type(tmp_path: Path, folder: str) -> None:
    quality = np.ones((1, TILE.height, TILE.width), np.uint8)
    quality[0, 3, 4] = 0
    numbers = np.where(quality > 0, 50, -9999).astype(np.int16)
    rule = FeatureRule(feature_type="mask", name="X", outputs=("X",), dtype="uint8")
    delivered = deliver(tmp_path / "tile", {"X": numbers, "QUALITY": quality}, TILE, dates(1))

    run(delivered, folder, FeatureMapping(features=(rule,)))

    np.testing.assert_array_equal(EOPatch.load(folder).mask["X"][..., 0], np.where(quality > 0, 50, 0))


def test_where_the_quality_is_not_a_number_there_is_no_data(tmp_path: Path, folder: str) -> None:
    quality = np.ones((1, TILE.height, TILE.width), np.float32)
    quality[0, 3, 4], quality[0, 5, 6] = np.nan, -1
    rule = FeatureRule(feature_type="data", name="X", outputs=("X",), dtype="uint16")
    numbers = np.full(quality.shape, 7, np.uint16)
    (tmp_path / "tile").mkdir()
    write_raster(tmp_path / "tile/QUALITY.tif", quality, TILE, predictor=1)
    delivered = deliver(tmp_path / "tile", {"X": numbers}, TILE, dates(1))
    delivered = dataclasses.replace(
        delivered, outputs={**delivered.outputs, "QUALITY": str(tmp_path / "tile/QUALITY.tif")}
    )

    run(delivered, folder, FeatureMapping(features=(rule,)))

    patch = EOPatch.load(folder)
    np.testing.assert_array_equal(patch.mask["IS_DATA"][..., 0], quality > 0)
    np.testing.assert_array_equal(patch.data["X"][..., 0], np.where(quality > 0, 7, 0))


def test_features_without_dates_have_the_memory_of_those_that_were_written(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planes, "_idle", [])
    names = [f"X{number}" for number in range(8)]
    numbers = {name: np.full((3, TILE.height, TILE.width), place, np.uint16) for place, name in enumerate(names)}
    rules = [FeatureRule(feature_type="data_timeless", name=name, outputs=(name,), dtype="uint16") for name in names]

    run(deliver(tmp_path / "tile", numbers, TILE, []), folder, FeatureMapping(features=rules, quality_output=None))

    assert sum(len(region.memory) for region in planes._idle[0]._regions) <= 3 * numbers["X0"].nbytes
    patch = EOPatch.load(folder)
    for name in names:
        np.testing.assert_array_equal(patch.data_timeless[name], numbers[name].transpose(1, 2, 0))


# ---- mappings ----


def test_the_default_mapping_makes_a_feature_of_each_output(
    tmp_path: Path, folder: str, outputs: dict[str, np.ndarray]
) -> None:
    mapping = default_mapping([("B02", COUNT, "UINT16"), ("QUALITY", COUNT, "UINT8"), ("VALID_COUNT", 1, "UINT16")])
    chosen = {name: outputs[name] for name in ("B02", "QUALITY", "VALID_COUNT")}

    run(deliver(tmp_path / "tile", chosen, TILE, dates(COUNT)), folder, mapping)

    patch = EOPatch.load(folder)
    np.testing.assert_array_equal(patch.data["B02"][..., 0], outputs["B02"])
    np.testing.assert_array_equal(patch.mask["QUALITY"][..., 0], outputs["QUALITY"])
    np.testing.assert_array_equal(patch.data_timeless["VALID_COUNT"][..., 0], outputs["VALID_COUNT"][0])
    np.testing.assert_array_equal(patch.mask["IS_DATA"][..., 0], outputs["QUALITY"] > 0)


def test_a_script_without_dates_gives_timeless_features_of_all_its_bands(tmp_path: Path, folder: str) -> None:
    colours = np.random.default_rng(0).random((3, TILE.height, TILE.width), np.float32)
    mapping = default_mapping([("RGB", 3, "FLOAT32")], temporal=False)
    delivered = deliver(tmp_path / "tile", {"RGB": colours}, TILE, [], predictor=3)

    run(dataclasses.replace(delivered, userdata=None), folder, mapping)

    patch = EOPatch.load(folder)
    np.testing.assert_array_equal(patch.data_timeless["RGB"], np.moveaxis(colours, 0, -1))
    assert patch.timestamps is None


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles, pixel": {"blockxsize": 16, "blockysize": 16},
    "tiles, band": {"blockxsize": 16, "blockysize": 16, "interleave": "band"},
    "strips, pixel": {"tiled": False, "blockxsize": None, "blockysize": 5},
    "strips, band": {"tiled": False, "blockxsize": None, "blockysize": 5, "interleave": "band"},
    "read by GDAL": {"compress": "lzw"},
}


@pytest.mark.parametrize("options", [NPY, ZARR])
@pytest.mark.parametrize("order", ["by date", "by band"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_with_several_bands_per_date_become_one_feature(
    tmp_path: Path, folder: str, outputs: dict[str, np.ndarray], layout: str, order: str, options: PatchOptions
) -> None:
    dated = np.stack([outputs[band] for band in ("B02", "B03", "B04")], axis=1)  # (date, band, row, column)
    bands = dated if order == "by date" else dated.swapaxes(0, 1)
    files = {"RGB": bands.reshape(-1, TILE.height, TILE.width), "QUALITY": outputs["QUALITY"]}
    more = np.arange(2 * COUNT * TILE.height * TILE.width, dtype=np.uint16).reshape(2 * COUNT, TILE.height, TILE.width)
    two = FeatureRule(feature_type="data", name="TWO", outputs=("A", "B"), bands_per_date=2, dtype="uint16")
    scaled = {"scale": 1e-4, "bands_per_date": 3, "band_order": order, "sample_type": "UINT16"}
    rgb = FeatureRule(feature_type="data", name="RGB", outputs=("RGB",), **scaled)
    shuffle = [2, 0, 3, 1]
    times = [dates(COUNT)[position] for position in shuffle]
    delivered = deliver(tmp_path / "tile", files | {"A": more, "B": more + 1}, TILE, times, **LAYOUTS[layout])

    run(delivered, folder, FeatureMapping(features=(rgb, two)), options)

    patch, back = EOPatch.load(folder), np.argsort(shuffle)
    has_data = outputs["QUALITY"][back, ..., np.newaxis] > 0
    expected = np.where(has_data, np.moveaxis(dated, 1, -1)[back] * 1e-4, 0)
    np.testing.assert_array_equal(patch.data["RGB"], expected.astype(np.float32))
    pairs = np.moveaxis(more.reshape(COUNT, 2, TILE.height, TILE.width), 1, -1)[back]
    np.testing.assert_array_equal(patch.data["TWO"], np.where(has_data, np.concatenate([pairs, pairs + 1], -1), 0))


def test_an_empty_patch_has_as_many_bands_as_those_with_data(folder: str) -> None:
    rule = FeatureRule(feature_type="data", name="X", outputs=("A", "B"), bands_per_date=3)
    nothing = TileFiles({}, None, tuple(dates(COUNT)))

    run(nothing, folder, FeatureMapping(features=(rule,)), PatchOptions(keep_empty=True))

    assert EOPatch.load(folder).data["X"].shape == (COUNT, TILE.height, TILE.width, 6)


def test_an_empty_patch_has_as_many_timeless_bands_as_the_setup_says(tmp_path: Path, folder: str) -> None:
    declared: list[Output] = [("RGB", 3, "UINT16"), ("DEM", 1, "INT16")]
    mapping = with_bands(default_mapping(declared, temporal=False), declared)
    assert mapping.sha256 == default_mapping(declared, temporal=False).sha256
    files = {
        "RGB": np.ones((3, TILE.height, TILE.width), np.uint16),
        "DEM": np.ones((1, TILE.height, TILE.width), "i2"),
    }
    run(deliver(tmp_path / "tile", files, TILE, []), folder, mapping)
    shapes = {name: EOPatch.load(folder).data_timeless[name].shape for name in files}

    run(TileFiles({}, None), folder, mapping, PatchOptions(keep_empty=True))

    assert {name: EOPatch.load(folder).data_timeless[name].shape for name in files} == shapes
    assert not any(EOPatch.load(folder).data_timeless[name].any() for name in files)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ([("QUALITY", 2, "FLOAT32")], "mask, which holds integers"),
        ([("b04", 2, "UINT16"), ("B04", 2, "UINT16")], "differ by more than upper and lower case"),
        ([("B0.4", 1, "UINT16")], "should match pattern"),
    ],
)
def test_outputs_that_cannot_be_features_of_their_own_name_need_a_mapping(declared: list[Output], reason: str) -> None:
    with pytest.raises(InvalidInput, match=rf"outputs .*{declared[0][0]}.* cannot become features .*{reason}.* Give a"):
        default_mapping(declared)


def test_a_date_that_is_too_large_for_a_chunk_of_zarr_is_told() -> None:
    tile = dataclasses.replace(TILE, width=10_000, height=10_000)
    with pytest.raises(
        InvalidInput, match=r"BANDS has 2\.4 GB: 10000 x 10000 pixels, 6 bands float32\. Choose npy\.gz"
    ):
        check_frames(MAPPING, [TILE, tile], "zarr")
    check_frames(MAPPING, [TILE, tile], "npy.gz")
    check_frames(land_cover_mapping(BANDS, INDICES, "uint16"), [TILE, tile], "zarr")
    check_frames(MAPPING, [], "zarr")


def test_a_file_without_all_bands_of_each_date_is_named(delivered: TileFiles, folder: str) -> None:
    rule = FeatureRule(feature_type="data", name="X", outputs=("B02",), bands_per_date=3)

    with pytest.raises(TileError, match=r"B02\.tif has 4 bands, expected 12, 3 for each of 4 dates"):
        run(delivered, folder, FeatureMapping(features=(rule,)))


@pytest.mark.parametrize(
    ("bands_per_date", "outputs", "per_scene", "message"),
    [
        (3, [("X", 75, "UINT16"), ("QUALITY", 25, "UINT8")], {}, None),
        (3, [("X", 1, "UINT16"), ("QUALITY", 1, "UINT8")], {"X": 3, "QUALITY": 1}, None),
        (3, [("X", 1, "UINT16"), ("QUALITY", 1, "UINT8")], {"X": 0, "QUALITY": 1}, None),
        (
            3,
            [("X", 25, "UINT16"), ("QUALITY", 25, "UINT8")],
            {},
            "X of the evalscript has 25 bands, but .*bands_per_date 3",
        ),
        (1, [("X", 75, "UINT16"), ("QUALITY", 25, "UINT8")], {}, "have so many dates: QUALITY 25, X 75. Correct"),
        (1, [("X", 1, "UINT16"), ("QUALITY", 1, "UINT8")], {"X": 3, "QUALITY": 1}, "dates per scene: QUALITY 1, X 3"),
        (2, [("X", 1, "UINT16"), ("QUALITY", 1, "UINT8")], {"X": 3, "QUALITY": 1}, "has 3 bands per scene, but its"),
    ],
)
def test_numbers_of_bands_that_cannot_be_of_the_same_dates_are_told_before_anything_is_bought(
    bands_per_date: int, outputs: list[Any], per_scene: dict[str, int], message: str | None
) -> None:
    rule = FeatureRule(feature_type="data", name="X", outputs=("X",), bands_per_date=bands_per_date)
    mapping = FeatureMapping(features=(rule,))

    if message is None:
        check_bands(mapping, outputs, per_scene)
    else:
        with pytest.raises(InvalidInput, match=message):
            check_bands(mapping, outputs, per_scene)


def test_by_default_what_grows_with_the_scenes_has_dates_and_a_single_band_beside_it_has_none() -> None:
    outputs: list[Any] = [("B04", 1, "UINT16"), ("MAX", 1, "FLOAT32"), ("QUALITY", 1, "UINT8")]

    mapping = default_mapping(outputs, bands_per_scene={"B04": 1, "QUALITY": 1})

    kinds = {rule.name: rule.feature_type for rule in mapping.features}
    assert kinds == {"B04": "data", "MAX": "data_timeless", "QUALITY": "mask"}
    timeless = default_mapping(outputs, temporal=False, bands_per_scene={"B04": 2})
    assert {rule.feature_type for rule in timeless.features} == {"data_timeless"}
    with pytest.raises(InvalidInput, match=r"outputs B04 \(2\) have several bands per scene, .* band_order"):
        default_mapping(outputs, bands_per_scene={"B04": 2, "QUALITY": 1})


def test_outputs_of_a_single_date_each_are_temporal() -> None:
    mapping = default_mapping([("B02", 1, "UINT16"), ("QUALITY", 1, "UINT8")])

    assert [rule.feature_type for rule in mapping.features] == ["data", "mask"]


def test_features_with_dates_need_dates(delivered: TileFiles, folder: str) -> None:
    with pytest.raises(InvalidInput, match=r"features with a time axis need dates; .*updateOutputMetadata"):
        run(dataclasses.replace(delivered, userdata=None), folder)


def test_dates_may_come_from_the_plan_when_the_script_gives_none(
    delivered: TileFiles, folder: str, outputs: dict[str, np.ndarray]
) -> None:
    run(dataclasses.replace(delivered, userdata=None, dates=tuple(dates(COUNT))), folder)

    assert_land_cover(EOPatch.load(folder), outputs)


def test_a_mapping_and_a_script_must_name_the_same_outputs() -> None:
    check_mapping(MAPPING, MAPPING.outputs)
    with pytest.raises(InvalidInput, match="needs the outputs B12, NDVI, but the evalscript gives B02"):
        check_mapping(MAPPING, MAPPING.outputs - {"B12", "NDVI"})
    with pytest.raises(InvalidInput, match="outputs CLOUDS are in no feature of the mapping"):
        check_mapping(MAPPING, MAPPING.outputs | {"CLOUDS"})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"feature_type": "mask", "name": "X", "outputs": ["A"]}], "holds integers, but its dtype is float32"),
        ([{"feature_type": "data", "name": "a/b", "outputs": ["A"]}], "should match pattern"),
        ([{"feature_type": "data", "name": "X", "outputs": []}], "at least 1 item"),
        ([{"feature_type": "data", "name": name, "outputs": ["A"]} for name in "xX"], "data/x occurs twice"),
        (
            [{"feature_type": "mask", "name": "IS_DATA", "outputs": ["A"], "dtype": "uint8"}],
            "mask/is_data occurs twice",
        ),
        ([], "at least 1 item"),
        ([{"feature_type": "data", "name": "X", "outputs": ["A"], "scale": float("nan")}], "finite number"),
        ([{"feature_type": "data", "name": "X", "outputs": ["A"], "offset": float("inf")}], "finite number"),
        ([{"feature_type": "data", "name": "X", "outputs": ["A"], "no_data": float("nan")}], "finite number"),
        (
            [{"feature_type": "data_timeless", "name": "X", "outputs": ["A"], "bands_per_date": 2}],
            "has no dates and takes all bands of a file, but its bands_per_date is 2",
        ),
        (
            [{"feature_type": "data", "name": "X", "outputs": ["QUALITY"], "bands_per_date": 2}],
            "but the quality output QUALITY, which it takes, has one",
        ),
    ],
)
def test_a_mapping_that_cannot_become_an_eopatch_is_refused(rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureMapping.model_validate({"features": rules})


def test_mappings_have_an_identity_that_survives_json() -> None:
    assert FeatureMapping.model_validate_json(MAPPING.model_dump_json()).sha256 == MAPPING.sha256
    assert land_cover_mapping(BANDS[::-1], INDICES).sha256 != MAPPING.sha256
    assert MAPPING.sha256.startswith("f6b1c86e5e1a8350"), "EOPatches of earlier versions would be made again"
    rule = {"feature_type": "data", "name": "X", "outputs": ["A"]}
    several = [rule | {"bands_per_date": 2, "band_order": order} for order in ("by date", "by band")]
    mappings = [FeatureMapping.model_validate({"features": [one]}) for one in (rule, *several)]
    assert len({mapping.sha256 for mapping in mappings}) == 3


def test_the_order_of_bands_is_that_of_the_mapping(
    delivered: TileFiles, outputs: dict[str, np.ndarray], folder: str
) -> None:
    run(delivered, folder, land_cover_mapping(("B12", "B02"), ()))

    bands = EOPatch.load(folder).data["BANDS"]
    np.testing.assert_array_equal(np.rint(bands[..., 0] * 10_000), outputs["B12"])
    np.testing.assert_array_equal(np.rint(bands[..., 1] * 10_000), outputs["B02"])
