"""The processes of a layout as torch's device meshes."""

from dataclasses import dataclass

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from kernels.collectives import divide_samples, divide_stages
from mm.parallel.layout import ParallelConfig


@dataclass(frozen=True)
class Meshes:
    """Two views of the same processes, which torch's sharding knows to be of one.

    Args:
        layout: what they divide.
        dense: (pp, replicate, shard, tp).
        sparse: (pp, replicate, outer, ep, part); outer · ep are the processes of shard.
        samples: the group whose ranks have samples of their own.
    """

    layout: ParallelConfig
    dense: DeviceMesh
    sparse: DeviceMesh
    samples: ProcessGroup

    @classmethod
    def of(cls, layout: ParallelConfig, device_type: str) -> "Meshes":
        """The meshes of all processes, which torch.distributed has connected; samples and stages are divided so."""
        world = init_device_mesh(device_type, (layout.processes,), mesh_dim_names=("world",))
        outer = layout.dp_shard // layout.ep
        stages = (layout.pp, layout.dp_replicate)
        dense = world._unflatten(0, (*stages, layout.dp_shard, layout.tp), ("pp", "replicate", "shard", "tp"))
        sparse = world._unflatten(0, (*stages, outer, layout.ep, layout.tp), ("pp", "replicate", "outer", "ep", "part"))
        samples = dense["replicate", "shard"]._flatten("samples").get_group()
        divide_samples(samples)
        meshes = cls(layout, dense, sparse, samples)
        divide_stages(meshes.group("pp"))
        return meshes

    @property
    def sharded(self) -> DeviceMesh:
        """What fully sharded data parallelism divides parameters among: (shard,) or (replicate, shard)."""
        return self.dense["replicate", "shard"] if self.layout.dp_replicate > 1 else self.dense["shard"]

    @property
    def sharded_experts(self) -> DeviceMesh:
        """The same of experts that are divided over ep: (outer,) or (replicate, outer)."""
        return self.sparse["replicate", "outer"] if self.layout.dp_replicate > 1 else self.sparse["outer"]

    @property
    def tensors(self) -> DeviceMesh:
        """What heads and hidden widths are divided among, (tp,)."""
        return self.dense["tp"]

    @property
    def experts(self) -> DeviceMesh | None:
        """What experts are divided among by number: (ep,), (tp,) or both; None where they are not."""
        if self.layout.ep > 1 and self.layout.tp > 1:
            return self.sparse["ep", "part"]
        if self.layout.ep > 1:
            return self.sparse["ep"]
        return self.dense["tp"] if self.layout.tp > 1 else None

    def group(self, name: str) -> ProcessGroup | None:
        """The group of a dimension of `dense` or `sparse`; None where it has one process."""
        mesh = self.dense if name in (self.dense.mesh_dim_names or ()) else self.sparse
        return mesh.get_group(name) if mesh[name].size() > 1 else None
