"""What the exit codes of everything in launch/ mean.

    0  done
    1  a bug, with its traceback
    2  the command line: an unknown name, a value out of bounds, things that do not go together
    3  what is read, or the machine: data, model, index, Java, a reward function of your own, whatever launch/doctor.py
       finds
    4  the cluster cannot hold the run
    5  nothing to resume, or no such run
    6  the judge of answers (reward.judge=endpoint) was not to be had
    7  a trial of a sweep failed; the others are done
    8  training diverged: no gradient was finite in three steps in a row
    9  another driver writes to the run that was to be resumed, or has taken it over
   75  machines failed and could not be replaced: learner, engines, replicas, a weight push; `resume` goes on. Or the
       place of the run's copies (train.mirror) cannot be reached
  130  Ctrl-C
  143  SIGTERM, after the step under way was saved; 15 before the first step, where Ray exits at once

`ray job submit` itself ends with 0 or 1; the job's own code stands in its status message.
"""

USAGE_ERROR, BAD_INPUT, DOES_NOT_FIT, NOTHING_TO_RESUME, NO_JUDGE, TRIAL_FAILED, DIVERGED = 2, 3, 4, 5, 6, 7, 8
LOCKED = 9
MACHINES_FAILED = 75  # EX_TEMPFAIL of sysexits.h: try again
STOPPED = 128 + 15
