"""The table of modules says what each really does."""

from torch import nn

from convspark.measure.modules import AS_IT_IS, NEIGHBOURS, ON_IMAGES, OVER_BATCH, OVER_IMAGE, watch_modules


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


def test_each_kind_of_module():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 2, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        Gate(),
        nn.GroupNorm(2, 8),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )
    rows = watch_modules(lambda x: [network(x)], network, 3, (16, 16))
    assert {(row.kind, row.count, row.action, row.first) for row in rows} == {
        ("Conv2d 2x2 /2", 1, AS_IT_IS, "0"),
        ("BatchNorm2d", 1, OVER_BATCH, "1"),
        ("ReLU", 2, AS_IT_IS, "2"),
        ("Conv2d 3x3 depthwise", 1, NEIGHBOURS, "3"),
        ("Conv2d 1x1", 1, AS_IT_IS, "4"),
        ("Gate", 1, OVER_IMAGE, "6"),
        ("Conv2d 1x1", 1, ON_IMAGES, "6.fc"),
        ("GroupNorm", 1, OVER_IMAGE, "7"),
        ("AvgPool2d 2x2 /2", 1, AS_IT_IS, "8"),
        ("MaxPool2d 3x3 /2", 1, NEIGHBOURS, "9"),
        ("Upsample", 1, AS_IT_IS, "10"),
        ("Upsample", 1, NEIGHBOURS, "11"),
    }
    assert network.training and not network[0]._forward_hooks
