"""Draws the accuracy that few labels give, from evaluation.json files.

    python bench/few_labels.py --plot docs/few-labels.svg "CIFAR-10=runs/cifar10/evaluation.json" ...

One panel for each file, one curve for each kind of features; the accuracies are `few_labels` of the file's rows, the largest
number of labels is the full linear probe's.
"""
import argparse
import json

NAMES = {"macrl": "MACRL", "random": "untrained", "pixels": "raw pixels"}
COLOURS = {"macrl": "#1f5fbf", "random": "#7a7f87", "pixels": "#c2410c"}


def curves(path):
    """Number of labels a class -> accuracy in percent, for each kind of features, from one file."""
    with open(path) as file:
        evaluation = json.load(file)
    classes = max(1, len(evaluation["labels"]))
    all_of_them = evaluation["protocol"]["train_images"] // classes
    return {
        row["features"]: {int(n): 100 * v for n, v in row.get("few_labels", {}).items()} | {all_of_them: 100 * row["linear"]}
        for row in evaluation["rows"] if row["features"] in NAMES
    }


def plot(panels, path):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "macrl", "axes.spines.top": False,
                         "axes.spines.right": False, "axes.grid": True, "grid.color": "#e5e7eb"})
    figure, all_axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.2), squeeze=False)
    for axes, (title, table) in zip(all_axes[0], panels.items()):
        for features, points in table.items():
            numbers = sorted(points)
            axes.plot(numbers, [points[n] for n in numbers], "o-", ms=4, color=COLOURS[features], label=NAMES[features])
        axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{n:,}" for n in numbers])
        axes.minorticks_off()
        axes.set_xlabel("labelled images of each class")
        axes.set_title(f"{title}: accuracy of a linear probe, %", loc="left", fontsize=10)
    all_axes[0][0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help="an evaluation.json and its panel's title")
    parser.add_argument("--plot", required=True, help="the .svg to write")
    arguments = parser.parse_args()
    plot({name: curves(path) for name, path in (file.split("=", 1) for file in arguments.files)}, arguments.plot)


main()
