"""flex_attention as Dynamo writes it into a graph, for tests that trace or run without Dynamo."""

from types import CellType, FunctionType

import torch
import torch.nn.attention.flex_attention as flex
from torch import Tensor


def attention_in_graph(
    q: Tensor, k: Tensor, v: Tensor, block_mask: flex.BlockMask, enable_gqa: bool
) -> Tensor:
    """What the mask reads of a batch, in the cells of its function, is an argument here."""
    options = flex._apply_kernel_options(q, k, v, False, None)
    *blocks, mask = block_mask.as_tuple()
    read = [cell.cell_contents for cell in mask.__closure__]

    def with_arguments(b: Tensor, h: Tensor, query: Tensor, key: Tensor, *read: Tensor) -> Tensor:
        cells = tuple(CellType(each) for each in read)
        return FunctionType(mask.__code__, mask.__globals__, closure=cells)(b, h, query, key)

    operation = torch.ops.higher_order.flex_attention
    mask_of_blocks = (*blocks, with_arguments)
    scale = q.shape[-1] ** -0.5
    return operation(q, k, v, flex._identity, mask_of_blocks, scale, options, (), tuple(read))[0]
