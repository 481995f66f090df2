"""Which support vector machine reads handwritten digits best? A grid of them as tasks.

    ipcluster run -n 4 docs/examples/digits_search.py [SIZE]

The data are the 1,797 images of 8 x 8 pixels that scikit-learn brings along.
Each task is one choice of C and gamma, judged by cross-validation on two
thirds of the images. They travel with the function, which goes to each engine
once. The best choice learns from all of these and reads the last third, which
no task has seen.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from ipython1.kernel import client

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
    from sklearn.svm import SVC
except ImportError:
    print("This example needs scikit-learn: pip install scikit-learn", file=sys.stderr)
    sys.exit(2)

FOLDS, SEED = 5, 2026


def main(size: int) -> int:
    """Search twice, compare, print; the exit status."""
    images, digits = load_digits(return_X_y=True)
    images, unseen, digits, answers = train_test_split(
        images / 16, digits, test_size=1 / 3, random_state=SEED, stratify=digits
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)

    def accuracy(c: float, gamma: float) -> float:
        """The mean share of digits that are read rightly, over the folds."""
        return float(cross_val_score(SVC(C=c, gamma=gamma), images, digits, cv=folds).mean())

    cs = [float(c) for c in np.logspace(-1, 3, size)]
    gammas = [float(gamma) for gamma in np.logspace(-4, 0, size)]
    choices = [(c, gamma) for c in cs for gamma in gammas]

    started = time.perf_counter()
    serial = [accuracy(*choice) for choice in choices]
    serial_time = time.perf_counter() - started

    with client.MultiEngineClient() as mec, client.TaskClient() as tc:
        engines = len(tc.ids)
        started = time.perf_counter()
        mec.execute("import sklearn.model_selection, sklearn.svm")
        import_time = time.perf_counter() - started
        started = time.perf_counter()
        found = tc.map(accuracy, *zip(*choices, strict=True), chunksize=1)
        parallel_time = time.perf_counter() - started

    print(f"{len(choices)} choices, {FOLDS} folds of {len(images):,} images; accuracy in %")
    print("        gamma" + "".join(f"{gamma:9.2g}" for gamma in gammas))
    for row, c in enumerate(cs):
        print(f"  C = {c:7.4g}" + "".join(f"{100 * value:9.1f}" for value in found[row * size :][:size]))
    place = int(np.argmax(found))
    c, gamma = choices[place]
    read = SVC(C=c, gamma=gamma).fit(images, digits).score(unseen, answers)
    print(f"best: C = {c:.4g}, gamma = {gamma:.2g} with {100 * found[place]:.1f} %", end="; ")
    print(f"it reads {100 * read:.1f} % of {len(unseen)} unseen images")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s", end="; ")
    print(f"these imported scikit-learn before, in {import_time:.3f} s")
    if found != serial:
        print("serial and parallel accuracies DIFFER", file=sys.stderr)
        return 1
    print("serial and parallel accuracies are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
