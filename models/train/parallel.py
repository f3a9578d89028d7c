"""Gradients of one batch from several single-threaded processes.

One thread a process is quicker here than two threads in one: a BLAS call with two threads waits for
the slower of them, which a busy machine delays at every call. The processes share the weights, take
micro-batches from a common counter, so that a delayed one takes fewer, and meet once a step.
"""
import multiprocessing
import os

import torch


class GradientPool:
    """Runs job(model, step, index, argument) for every micro-batch index of a step in all processes.

    job computes a loss, calls backward and returns a list of N_STATS numbers, which are summed. It must
    draw its data from (step, index) alone. Made before the first use of autograd: it forks.
    """

    N_STATS = 4

    def __init__(self, model, job, n_helpers):
        self.model, self.job = model, job
        model.share_memory()
        params = list(model.parameters())
        self.gradients = torch.zeros(1 + n_helpers, sum(p.numel() for p in params)).share_memory_()
        self.stats = torch.zeros(1 + n_helpers, self.N_STATS, dtype=torch.float64).share_memory_()
        context = multiprocessing.get_context("fork")
        self.task = context.Array("q", 4)       # step, argument, next index, end index
        self.begin = [context.Semaphore(0) for _ in range(n_helpers)]
        self.done = context.Semaphore(0)
        self.helpers = [context.Process(target=self.help, args=(i,), daemon=True) for i in range(n_helpers)]
        for helper in self.helpers:
            helper.start()
        self.attach(0)

    def attach(self, worker):
        """Makes this process's gradients views of its row of the shared array."""
        at = 0
        for p in self.model.parameters():
            p.grad = self.gradients[worker, at:at + p.numel()].view_as(p)
            at += p.numel()

    def help(self, i):
        self.attach(1 + i)
        parent = os.getppid()
        while True:
            if self.begin[i].acquire(timeout=10):
                self.work(1 + i)
                self.done.release()
            elif os.getppid() != parent:        # the main process was killed
                return

    def work(self, worker):
        self.gradients[worker].zero_()
        self.stats[worker].zero_()
        while True:
            with self.task.get_lock():
                step, argument, index, end = self.task
                if index >= end:
                    return
                self.task[2] = index + 1
            self.stats[worker] += torch.tensor(self.job(self.model, step, index, argument), dtype=torch.float64)

    def run(self, step, argument, n_micro):
        """Leaves the summed gradients in the model's parameters; returns the summed stats."""
        self.task[:] = [step, argument, 0, n_micro]
        for semaphore in self.begin:
            semaphore.release()
        self.work(0)
        for _ in self.begin:
            self.done.acquire()
        for row in self.gradients[1:]:
            self.gradients[0] += row
        return self.stats.sum(dim=0).tolist()
