(* T03 (a). The paper's step 2/||C||_F is not covered by T02: a pruning iteration that leaves the optimum and cycles. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T02.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* (a) Pruning: C = I_2, w = (1, 1), at most one nonzero, 1 < eta < 3. *)
Section PruningCycle.
Variables (R : realFieldType) (eta : R).

Definition row2 (a b : R) : 'rV[R]_2 := \row_j (if j == 0 then a else b).
Definition one_nonzero : 'rV[R]_2 -> Prop := sparse_rows 1.
Definition cycle_step := pgd_step (row2 1 1) 1%:M one_nonzero eta.

Lemma row2_eta (T : 'rV[R]_2) : T = row2 (T 0 0) (T 0 1).
Proof. by apply/rowP; case=> [[|[|//]] i]; rewrite mxE; congr (T _ _); apply: val_inj. Qed.

Lemma sqnorm_row2 a b : sqnorm (row2 a b) = a ^+ 2 + b ^+ 2.
Proof. by rewrite sqnormE big_ord1 big_ord_recl big_ord1 !mxE. Qed.

Lemma row2B a b c d : row2 a b - row2 c d = row2 (a - c) (b - d).
Proof. by apply/rowP => j; rewrite !mxE; case: ifP. Qed.

Lemma one_nonzeroP a b : one_nonzero (row2 a b) <-> a = 0 \/ b = 0.
Proof.
have nnz : row_nnz (row 0 (row2 a b)) = ((a != 0%R) + (b != 0%R))%N.
  rewrite /row_nnz -sum1_card big_mkcond /= big_ord_recl big_ord1 !inE !mxE.
  by case: (a == 0); case: (b == 0).
split=> [/(_ 0) | ab i]; rewrite ?ord1 nnz.
  by case: eqP; [left | case: eqP; [right | ]].
by case: ab => ->; rewrite eqxx ?addn0 leq_b1.
Qed.

Lemma nearest_second a b T : a ^+ 2 < b ^+ 2 -> nearest one_nonzero (row2 a b) T <-> T = row2 0 b.
Proof.
move=> lt; split=> [|->]; last first.
  split=> [|U]; first by apply/one_nonzeroP; left.
  rewrite (row2_eta U) !row2B !sqnorm_row2 subr0 subrr expr0n addr0 => /one_nonzeroP[] ->; rewrite subr0.
    by rewrite ler_addl sqr_ge0.
  by rewrite (le_trans (ltW lt)) // ler_addr sqr_ge0.
have S0b : one_nonzero (row2 0 b) by apply/one_nonzeroP; left.
rewrite (row2_eta T); case=> /one_nonzeroP zero /(_ _ S0b).
rewrite !row2B !sqnorm_row2 subr0 subrr expr0n addr0; case: zero => ->; rewrite subr0.
  by rewrite ger_addl => le0; congr row2; apply/esym/eqP; rewrite -subr_eq0 -sqrf_eq0 eq_le le0 sqr_ge0.
by move=> le; have := le_lt_trans le lt; rewrite ltNge ler_addr sqr_ge0.
Qed.

(* The example is symmetric in its two inputs. *)
Definition swap (T : 'rV[R]_2) := row2 (T 0 1) (T 0 0).

Lemma swapK : involutive swap.
Proof. by move=> T; rewrite /swap [RHS]row2_eta !mxE. Qed.

Lemma nearest_swap Z T : nearest one_nonzero Z T -> nearest one_nonzero (swap Z) (swap T).
Proof.
have feasible U : one_nonzero U -> one_nonzero (swap U).
  by rewrite (row2_eta U) /swap !mxE => /one_nonzeroP ab; apply/one_nonzeroP; case: ab; [right | left].
have norm (A B : 'rV[R]_2) : sqnorm (swap A - swap B) = sqnorm (A - B).
  by rewrite (row2_eta A) (row2_eta B) /swap !mxE !row2B !sqnorm_row2 addrC.
case=> ST near; split=> [|U SU]; first exact: feasible.
by rewrite norm -{1}(swapK U) norm; apply/near/feasible.
Qed.

Lemma nearest_first a b T : b ^+ 2 < a ^+ 2 -> nearest one_nonzero (row2 a b) T <-> T = row2 a 0.
Proof.
move=> lt; split=> [/nearest_swap | ->].
  by rewrite {1}/swap !mxE => /(nearest_second _ lt) eq; rewrite -[T]swapK eq /swap !mxE.
have /nearest_swap := (nearest_second (row2 0 a) lt).2 erefl.
by rewrite /swap !mxE.
Qed.

Lemma target a b : row2 a b - eta *: gradient (row2 1 1) 1%:M (row2 a b)
                   = row2 (a + eta * (1 - a)) (b + eta * (1 - b)).
Proof. by apply/rowP => j; rewrite /gradient mulmx1 !mxE; case: ifP => _; ring. Qed.

Lemma value a b : objective (row2 1 1) 1%:M (row2 a b) = ((1 - a) ^+ 2 + (1 - b) ^+ 2) / 2%:R.
Proof. by rewrite /objective form_dot mulmx1 row2B -/(sqnorm _) sqnorm_row2. Qed.

(* (1, 0) is optimal, with f = 1/2. *)
Theorem optimum T : one_nonzero T -> objective (row2 1 1) 1%:M (row2 1 0) <= objective (row2 1 1) 1%:M T.
Proof.
rewrite (row2_eta T) !value subrr expr0n add0r subr0 expr1n => /one_nonzeroP[] ->.
  by rewrite ler_pmul2r ?invr_gt0 ?ltr0n // subr0 expr1n ler_addl sqr_ge0.
by rewrite ler_pmul2r ?invr_gt0 ?ltr0n // subr0 expr1n ler_addr sqr_ge0.
Qed.

Hypotheses (eta_gt1 : 1 < eta) (eta_lt3 : eta < 3%:R).

Lemma kept_entry : (eta + eta * (1 - eta)) ^+ 2 < eta ^+ 2.
Proof.
rewrite -subr_gt0; have -> : eta ^+ 2 - (eta + eta * (1 - eta)) ^+ 2 = eta ^+ 2 * ((eta - 1) * (3%:R - eta)) by ring.
by rewrite !mulr_gt0 ?exprn_gt0 ?subr_gt0 // (lt_trans ltr01).
Qed.

Theorem leaves_optimum T : cycle_step (row2 1 0) T <-> T = row2 0 eta.
Proof.
have := @nearest_second 1 eta T; rewrite /cycle_step /pgd_step target subrr mulr0 addr0 add0r subr0 mulr1.
by apply; rewrite expr1n exprn_egt1.
Qed.

Theorem cycle_right T : cycle_step (row2 eta 0) T <-> T = row2 0 eta.
Proof.
have := @nearest_second _ _ T kept_entry.
by rewrite /cycle_step /pgd_step target add0r subr0 mulr1.
Qed.

Theorem cycle_left T : cycle_step (row2 0 eta) T <-> T = row2 eta 0.
Proof.
have := @nearest_first _ _ T kept_entry.
by rewrite /cycle_step /pgd_step target add0r subr0 mulr1.
Qed.

(* Whatever the tie rule, a run from (1, 0), the optimum, or from (eta, 0) alternates for ever... *)
Theorem cycles_for_ever (x : nat -> 'rV[R]_2) : x 0%N = row2 1 0 \/ x 0%N = row2 eta 0 ->
  (forall t, cycle_step (x t) (x t.+1)) -> forall t, x t.*2.+1 = row2 0 eta /\ x t.*2.+2 = row2 eta 0.
Proof.
move=> x0 run t.
suff odd u : x u.*2.+1 = row2 0 eta by split=> //; apply/cycle_left; rewrite -[row2 0 eta](odd t).
elim: u => [|u IH].
  by case: x0 => x0; have := run 0%N; rewrite x0; [move/leaves_optimum | move/cycle_right].
have even : x u.*2.+2 = row2 eta 0 by apply/cycle_left; rewrite -IH.
by apply/cycle_right; rewrite -even.
Qed.

(* ... at a value above the optimum's 1/2. *)
Theorem cycle_value : objective (row2 1 1) 1%:M (row2 eta 0) = (1 + (eta - 1) ^+ 2) / 2%:R /\
  objective (row2 1 1) 1%:M (row2 0 eta) = (1 + (eta - 1) ^+ 2) / 2%:R /\ 1 / 2%:R < (1 + (eta - 1) ^+ 2) / 2%:R.
Proof.
rewrite !value; split; first by congr (_ / _); ring.
split; first by congr (_ / _); ring.
by rewrite ltr_pmul2r ?invr_gt0 ?ltr0n // ltr_addl exprn_gt0 // subr_gt0.
Qed.

End PruningCycle.
