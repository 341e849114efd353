# SPDX-License-Identifier: Apache-2.0
"""Where the first splats come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from representations.gaussians import GaussianConfig, GaussianRenderer, InitConfig, initialise
from representations.gaussians.initialise import ball_points, neighbour_distance

from .helpers import cameras_around, seeded


def colours(cloud):
    return 0.5 + 0.28209479177387814 * cloud.sh_dc


def test_the_ball_is_uniform_in_volume():
    radius = ball_points(20_000, 0.8, seeded(0)).norm(dim=-1)
    assert float(radius.max()) <= 0.8 + 1e-6
    # The share inside r is (r / R)^3; a Kolmogorov distance of 0.0115 has probability 1 %.
    share = (radius.sort().values / 0.8) ** 3
    expected = (torch.arange(20_000) + 0.5) / 20_000
    assert float((share - expected).abs().max()) < 0.0115


def test_scales_are_the_mean_distance_to_three_neighbours():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [9, 9, 9]])
    assert float(neighbour_distance(points)[0]) == pytest.approx(2.0)
    assert neighbour_distance(points[:1]).tolist() == pytest.approx([0.1])
    assert bool((neighbour_distance(torch.zeros(5, 3)) > 0).all())


def test_the_ball_obeys_its_settings():
    config = GaussianConfig(count=300, init=InitConfig(opacity=0.25, colour=0.3, colour_jitter=0.0))
    cloud = initialise(config)
    assert len(cloud) == 300
    torch.testing.assert_close(cloud.opacity_logit.sigmoid(), torch.full((300,), 0.25))
    torch.testing.assert_close(colours(cloud), torch.full((300, 3), 0.3))
    again, other = initialise(config), initialise(config, seed=1)
    assert torch.equal(again.means, cloud.means)
    assert not torch.equal(other.means, cloud.means)


def test_a_coloured_mesh_is_sampled_on_its_surface(tmp_path):
    mesh = trimesh.creation.box((2.0, 2.0, 2.0))
    red = np.tile([255, 0, 0, 255], (len(mesh.vertices), 1)).astype(np.uint8)
    mesh.visual.vertex_colors = red
    mesh.export(tmp_path / "box.ply")
    path = str(tmp_path / "box.ply")
    config = GaussianConfig(count=600, init=InitConfig(kind="points", path=path, radius=0.0))
    cloud = initialise(config)
    torch.testing.assert_close(cloud.means.abs().amax(-1), torch.ones(600), atol=1e-5, rtol=0)
    torch.testing.assert_close(colours(cloud), torch.tensor([1.0, 0, 0]).expand(600, 3))
    scaled = initialise(GaussianConfig(count=600, init=InitConfig(kind="points", path=path)))
    assert float(scaled.means.norm(dim=-1).max()) == pytest.approx(0.8, abs=1e-5)
    render, _ = GaussianRenderer(config, cloud=scaled).render(cameras_around(1), torch.zeros(1, 3))
    assert float(render.rgb[:, 0].detach().max()) > 5 * float(render.rgb[:, 1].detach().max())


def test_a_point_cloud_keeps_its_colours_and_grows_to_the_count(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 3))
    rgb = np.tile([0, 0, 255, 255], (50, 1)).astype(np.uint8)
    trimesh.PointCloud(points, colors=rgb).export(tmp_path / "points.ply")
    init = InitConfig(kind="points", path=str(tmp_path / "points.ply"))
    cloud = initialise(GaussianConfig(count=120, init=init))
    assert len(cloud) == 120
    assert len(torch.unique(cloud.means, dim=0)) == 120
    torch.testing.assert_close(colours(cloud), torch.tensor([0.0, 0, 1.0]).expand(120, 3))


@pytest.mark.parametrize("content", [b"", b"not a mesh", b"ply\nformat ascii 1.0\nend_header\n"])
def test_bad_point_files_teach(tmp_path, content):
    path = tmp_path / "bad.ply"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.ply"):
        initialise(GaussianConfig(init=InitConfig(kind="points", path=str(path))))
    with pytest.raises(ValueError, match="is not a file"):
        initialise(GaussianConfig(init=InitConfig(kind="points", path=str(tmp_path / "none.obj"))))


def test_too_many_splats_for_the_budget():
    cloud = initialise(GaussianConfig(count=50))
    with pytest.raises(ValueError, match="max_count=50"):
        GaussianRenderer(GaussianConfig(count=10, max_count=20), cloud=cloud)


def test_normals_face_the_camera_and_follow_the_shortest_axis():
    config = GaussianConfig(count=40)
    cloud = initialise(config)
    cloud = cloud.replace(
        quat_wxyz=torch.tensor([[1.0, 0, 0, 0]]).repeat(40, 1),
        log_scale=torch.log(torch.tensor([[0.01, 0.2, 0.2]])).repeat(40, 1),
        opacity_logit=torch.full((40,), 3.0),
    )
    renderer = GaussianRenderer(config, cloud=cloud)
    with torch.no_grad():
        render, _ = renderer.render(cameras_around(2, (24, 24)), torch.zeros(2, 3))
    solid = render.alpha[:, 0] > 0.5
    for b, sign in ((0, 1.0), (1, -1.0)):  # azimuth 20 and 200 degrees: +x and -x sides
        normal = render.normal[b, :, solid[b]]
        torch.testing.assert_close(
            normal, torch.tensor([[sign], [0.0], [0.0]]).expand_as(normal), atol=1e-4, rtol=0
        )
